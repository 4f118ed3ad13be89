"""BFCL v4 single-turn categories: question files and their `possible_answer` files.

Schemas with types of Python, Java and JavaScript become JSON Schema. The call is made from the
accepted values; an argument that may be left out is left out, and `accept` keeps them all.

Source: the upstream data files and their README (Patil et al., "The Berkeley Function Calling
Leaderboard", ICML 2025): "" among the accepted values means that the argument may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, SchemaError

from toolguard.calibration.importers.upstream import (
    ImportReport,
    RecordWriter,
    UpstreamError,
    read_lines,
)
from toolguard.guard.errors import DatasetError

SOURCE = "bfcl"
ANSWERS = "possible_answer"
_FILE = re.compile(r"BFCL_v\d+_(?P<category>\w+)\.json")
# These have labels of another kind: lists of statements, or what a search should find.
_OTHER_KINDS = ("multi_turn", "memory", "web_search", "format_sensitivity")

_JSON_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("dict", "object", "hashmap", "hashtable", "map"), "object"),
    **dict.fromkeys(("array", "list", "tuple", "arraylist", "queue", "stack", "set"), "array"),
    **dict.fromkeys(("string", "str", "char", "character"), "string"),
    **dict.fromkeys(("integer", "int", "long", "short", "byte", "bigint"), "integer"),
    **dict.fromkeys(("number", "float", "double"), "number"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("null", "none", "nonetype"), "null"),
}
_ABSENT = object()


def import_bfcl(inputs: Sequence[Path], out: Path) -> ImportReport:
    """Write the records of BFCL question files and return what was written.

    Args:
        inputs: question files, or folders of them. A category's answers are read from the file of
            the same name in `possible_answer/` beside it; irrelevance categories have none.
        out: folder for `records.jsonl` and `menus.json`.

    Raises:
        DatasetError: if a file is missing, or of a category that has no single-call labels.
        ConfigError: if `out` holds records already.
    """
    files = [file for path in inputs for file in _files(path)]
    with RecordWriter(out=out, source=SOURCE) as writer:
        for path in files:
            answers = _answers(path, writer)
            for line, value in read_lines(path):
                try:
                    record = _record(value, _category(path), answers, writer)
                except UpstreamError as error:
                    writer.note(path, line, error.field, error.message)
                else:
                    writer.write(record, path, line)
    return replace(writer.report(), skipped=_skipped(inputs))


def _skipped(inputs: Sequence[Path]) -> tuple[Path, ...]:
    """Return the question files in folders whose category has no single-call labels."""
    files = (file for path in inputs if path.is_dir() for file in _question_files(path))
    return tuple(file for file in files if not _is_labelled(file))


def _question_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("BFCL_v*_*.json"))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        _require_labels(path)
        return [path]
    found = [file for file in _question_files(path) if _is_labelled(file)]
    if not found:
        raise DatasetError(
            f"{path} holds no labelled BFCL question file",
            hint=f"name the folder with BFCL_v4_*.json and {ANSWERS}/",
            path=str(path),
        )
    return found


def _category(path: Path) -> str:
    match = _FILE.fullmatch(path.name)
    return match["category"] if match else path.stem


def _is_labelled(path: Path) -> bool:
    category = _category(path)
    if category.startswith(_OTHER_KINDS):
        return False
    return category.endswith("irrelevance") or (path.parent / ANSWERS / path.name).is_file()


def _require_labels(path: Path) -> None:
    if path.is_file() and not _is_labelled(path):
        raise DatasetError(
            f"{path}: category {_category(path)!r} has no single-call labels to import",
            hint=f"name a single-turn category with its file in {ANSWERS}/, or an irrelevance one",
            path=str(path),
        )


def _answers(path: Path, writer: RecordWriter) -> dict[str, object] | None:
    """Return the ground truth by question id; None for a category in which nothing is called."""
    if _category(path).endswith("irrelevance"):
        return None
    file = path.parent / ANSWERS / path.name
    answers: dict[str, object] = {}
    for line, value in read_lines(file):
        if isinstance(value, dict) and isinstance(value.get("id"), str):
            answers[value["id"]] = value.get("ground_truth")
        else:
            writer.note(file, line, "id", "must be an object with an id")
    return answers


def _record(
    value: object, category: str, answers: Mapping[str, object] | None, writer: RecordWriter
) -> dict[str, Any]:
    if isinstance(value, ValueError):
        raise UpstreamError("", f"not JSON: {value}")
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        raise UpstreamError("id", "must be an object with an id")
    messages = _messages(value.get("question"))
    tools = _tools(value.get("function"))
    record: dict[str, Any] = {"id": value["id"], "split": category, "query": _last_user(messages)}
    if len(messages) > 1:
        record["messages"] = messages
    tags = [f"bfcl:{category}", *(["live"] if category.startswith("live") else [])]
    tags.append("multi_message" if len(messages) > 1 else "single_turn")
    if answers is None:
        labels: dict[str, Any] = {"call": None, "tags": [*tags, "abstain", "no_suitable_tool"]}
    elif value["id"] in answers:
        labels = _labels(answers[value["id"]], tools, tags)
    else:
        raise UpstreamError("id", f"there is no answer to it in {ANSWERS}/")
    return {**record, "menu": writer.add_menu(tools), **labels}


def _labels(truth: object, tools: Sequence[Mapping[str, Any]], tags: list[str]) -> dict[str, Any]:
    """Return `call`, `calls`, `accept`, `tags` and `meta` of a ground truth."""
    if not isinstance(truth, list) or not truth:
        raise UpstreamError("ground_truth", "must be a list of calls")
    schemas = {tool["name"]: tool["parameters"] for tool in tools}
    calls = [_call(entry, schemas) for entry in truth]
    labels: dict[str, Any] = {"call": calls[0], "accept": truth, "tags": tags}
    if len(calls) > 1:
        labels |= {"calls": calls, "tags": [*tags, "multi_call", "unordered_calls"]}
    faults = [fault for call in calls if (fault := _fault(call, schemas[call["name"]]))]
    if faults:
        labels["tags"] = [*labels["tags"], "args_invalid"]
        labels["meta"] = {"args_error": faults[0]}
    return labels


def _fault(call: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return why the call's arguments do not fit the schema; empty if they do."""
    error = next(Draft202012Validator(schema).iter_errors(call["arguments"]), None)
    return error.message if error else ""


def _call(entry: object, schemas: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(entry, dict) or len(entry) != 1:
        raise UpstreamError("ground_truth", "each call must be an object with one tool")
    name, accepted = next(iter(entry.items()))
    if name not in schemas:
        raise UpstreamError("ground_truth", f"{name!r} is not among the functions")
    if not isinstance(accepted, dict):
        raise UpstreamError("ground_truth", f"the arguments of {name!r} must be an object")
    return {"name": name, "arguments": _arguments(accepted, schemas[name])}


def _arguments(accepted: Mapping[str, object], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return one value for each argument, or none where it may be left out."""
    required = schema.get("required", [])
    properties = schema.get("properties", {})
    chosen = {
        name: _first(values, properties.get(name, {}), required=name in required)
        for name, values in accepted.items()
    }
    return {name: value for name, value in chosen.items() if value is not _ABSENT}


def _first(accepted: object, schema: Mapping[str, Any], *, required: bool) -> object:
    if not isinstance(accepted, list) or not accepted:
        raise UpstreamError("ground_truth", "accepted values must be a list that is not empty")
    if "" in accepted and not required:
        return _ABSENT
    return _plain(next((value for value in accepted if value != ""), ""), schema)


def _plain(value: object, schema: Mapping[str, Any]) -> object:
    """Return an accepted value with the lists of alternatives inside its objects resolved."""
    if isinstance(value, dict):
        # Alternatives are lists; an object that already is a plain value is kept as it is.
        if all(isinstance(inner, list) and inner for inner in value.values()):
            return _arguments(value, schema)
        return value
    if isinstance(value, list):
        items = schema.get("items", {})
        return [_plain(item, items if isinstance(items, dict) else {}) for item in value]
    return value


def _messages(question: object) -> list[dict[str, str]]:
    if not isinstance(question, list) or len(question) != 1 or not isinstance(question[0], list):
        raise UpstreamError("question", "must be one turn, a list of messages in a list")
    messages = []
    for message in question[0]:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise UpstreamError("question", "each message must have a role and a content")
        messages.append({"role": role, "content": content})
    return messages


def _last_user(messages: Sequence[Mapping[str, str]]) -> str:
    texts = [message["content"] for message in messages if message["role"] == "user"]
    if not texts:
        raise UpstreamError("question", "has no user message")
    return texts[-1]


def _tools(functions: object) -> list[dict[str, Any]]:
    if not isinstance(functions, list) or not functions:
        raise UpstreamError("function", "must be a list that is not empty")
    return [_tool(function) for function in functions]


def _tool(function: object) -> dict[str, Any]:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UpstreamError("function", "must be an object with a name")
    parameters = json_schema(function.get("parameters") or {"type": "dict", "properties": {}})
    try:
        Draft202012Validator.check_schema(parameters)
    except SchemaError as error:
        raise UpstreamError("function.parameters", f"not a JSON Schema: {error.message}") from None
    description = function.get("description", "")
    return {"name": function["name"], "description": description, "parameters": parameters}


def json_schema(schema: object) -> dict[str, Any]:
    """Return JSON Schema for an upstream schema with types such as `dict`, `float`, `HashMap`.

    `any` becomes a schema without a type. A list of item schemas becomes `prefixItems`.

    Raises:
        UpstreamError: on a type that is not known, or a schema that is not an object.
    """
    if not isinstance(schema, dict):
        raise UpstreamError("function.parameters", "a schema must be an object")
    result = dict(schema)
    if "type" in result:
        names = result.pop("type")
        types = [_json_type(name) for name in (names if isinstance(names, list) else [names])]
        if None not in types:
            result = {"type": types if isinstance(names, list) else types[0], **result}
    if isinstance(result.get("properties"), dict):
        inner = result["properties"].items()
        result["properties"] = {name: json_schema(value) for name, value in inner}
    if isinstance(result.get("items"), list):
        result["prefixItems"] = [json_schema(item) for item in result.pop("items")]
    elif "items" in result:
        result["items"] = json_schema(result["items"])
    if isinstance(result.get("additionalProperties"), dict):
        result["additionalProperties"] = json_schema(result["additionalProperties"])
    # Some properties say `required: true` of themselves, which JSON Schema has no word for.
    if not isinstance(result.get("required", []), list):
        del result["required"]
    return result


def _json_type(name: object) -> str | None:
    """Return the JSON type of an upstream type; None for `any`."""
    if not isinstance(name, str):
        raise UpstreamError("function.parameters", "a type must be a string")
    if name.lower() == "any":
        return None
    if name.lower() not in _JSON_TYPES:
        raise UpstreamError("function.parameters", f"unknown type {name!r}")
    return _JSON_TYPES[name.lower()]
