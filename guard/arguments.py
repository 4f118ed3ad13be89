"""The argument guard: what is missing from a call's arguments, or wrong with them.

A finding names fields and broken words of a schema, never a value: values are the user's, and names
that no schema tells are free text of the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import SchemaError, UnknownType
from referencing.exceptions import Unresolvable

from toolguard.guard.argument_schema import compiled, declared_names
from toolguard.guard.policy_sections import ToolPolicy
from toolguard.guard.tools import Tool

MAX_BYTES = 65_536  # of the canonical JSON in UTF-8
MAX_DEPTH = 32  # objects and lists in each other, the arguments object counted
MAX_FINDINGS = 16  # a list of a thousand wrong items is told by its first ones

# What a schema that nobody checked may raise while it is applied.
_UNUSABLE = (
    *(SchemaError, UnknownType, Unresolvable, RecursionError),
    *(re.error, TypeError, ArithmeticError),
)

Problem = Literal["missing", "invalid", "irrelevant", "too_large", "too_deep"]


@dataclass(frozen=True, slots=True)
class ArgumentFinding:
    """One thing that is wrong with a call's arguments.

    Args:
        field: path of the argument, as `address.street` or `items[0]`; empty for the whole object.
            A name that no schema tells is written `*`.
        problem: `missing` can be asked for; the rest cannot stand.
        detail: what is wrong, without any value.
    """

    field: str
    problem: Problem
    detail: str

    def __str__(self) -> str:
        return f"{self.field or 'the arguments'}: {self.detail}"


def check_arguments(
    tool: Tool,
    arguments: Mapping[str, Any],
    listed: ToolPolicy | None = None,
    *,
    closed: bool = False,
) -> tuple[ArgumentFinding, ...]:
    """Return what is wrong with the arguments of a call, empty if nothing is.

    Args:
        tool: of the call; its `parameters` are checked.
        arguments: as written.
        listed: the policy's section of the tool, with further constraints.
        closed: whether an argument that neither schema names is wrong.
    """
    if (limit := _over_limit(arguments)) is not None:
        return (limit,)
    listed = listed or ToolPolicy()
    sides = [_Side(schema=tool.parameters, owner="the tool's schema", formats=False)]
    if listed.arguments is not None:
        sides.append(_Side(schema=listed.arguments, owner="the policy", formats=True))
    found = {
        name: ArgumentFinding(name, "irrelevant", "the policy has no use for this argument")
        for name in listed.irrelevant
        if name in arguments
    }
    for name in _missing(arguments, sides, listed):
        found[name] = ArgumentFinding(name, "missing", "a required value is missing")
    if closed and not set(arguments) <= _top_names(sides, listed):
        found["*"] = ArgumentFinding("*", "invalid", "no schema names this argument")
    for side in sides:
        for finding in side.findings(dict(arguments)):
            found.setdefault(finding.field, finding)
    return tuple(found.values())[:MAX_FINDINGS]


def _over_limit(arguments: object) -> ArgumentFinding | None:
    """Return the finding on arguments that are too big, too deep or no JSON; recurses nowhere."""
    if not isinstance(arguments, Mapping):
        return _NOT_JSON
    waiting: list[tuple[object, int]] = [(arguments, 1)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if not isinstance(value, Mapping | list | tuple):
            continue
        if depth > MAX_DEPTH:
            return ArgumentFinding("", "too_deep", f"nested deeper than {MAX_DEPTH} levels")
        if seen + len(waiting) + len(value) > MAX_BYTES:  # every value takes a byte at least
            return _TOO_LARGE
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                return _NOT_JSON
            waiting.extend((inner, depth + 1) for inner in value.values())
        else:
            waiting.extend((inner, depth + 1) for inner in value)
    try:
        text = json.dumps(
            dict(arguments), separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        size = len(text.encode())
    except (TypeError, ValueError):
        return _NOT_JSON
    return _TOO_LARGE if size > MAX_BYTES else None


_TOO_LARGE = ArgumentFinding("", "too_large", f"more than {MAX_BYTES} bytes")
_NOT_JSON = ArgumentFinding("", "invalid", "not a JSON object")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One of the two schemas that arguments have to meet."""

    schema: Mapping[str, Any]
    owner: str
    formats: bool

    @property
    def properties(self) -> Mapping[str, Any]:
        found = self.schema.get("properties")
        return found if isinstance(found, Mapping) else {}

    @property
    def required(self) -> tuple[str, ...]:
        found = self.schema.get("required")
        return tuple(map(str, found)) if isinstance(found, list | tuple) else ()

    def findings(self, arguments: dict[str, Any]) -> Iterator[ArgumentFinding]:
        """Yield what the schema has against the arguments; a schema that fails closes the call."""
        try:
            validator = compiled(self.schema, formats=self.formats)
            known = declared_names(self.schema)
            yield from self._errors(validator, arguments, known)
        except _UNUSABLE:
            yield ArgumentFinding("", "invalid", f"{self.owner} cannot be applied")

    def _errors(
        self, validator: Draft202012Validator, arguments: dict[str, Any], known: frozenset[str]
    ) -> Iterator[ArgumentFinding]:
        for count, error in enumerate(validator.iter_errors(arguments)):
            if count >= MAX_FINDINGS:
                return
            if error.validator == "required":
                yield from _required(error, known)
                continue
            detail = f"breaks `{error.validator}` of {self.owner}"
            yield ArgumentFinding(_path(error.absolute_path, known), "invalid", detail)


def _required(error: ValidationError, known: frozenset[str]) -> Iterator[ArgumentFinding]:
    instance: Any = error.instance
    wanted: Any = error.validator_value
    for name in wanted:
        if name not in instance:
            field = _path((*error.absolute_path, name), known | {name})
            yield ArgumentFinding(field, "missing", "a required value is missing")


def _path(places: Any, known: frozenset[str]) -> str:
    text = ""
    for place in places:
        if isinstance(place, int):
            text += f"[{place}]"
        else:
            text += ("." if text else "") + (place if place in known else "*")
    return text


def _missing(arguments: Mapping[str, Any], sides: list[_Side], listed: ToolPolicy) -> Iterator[str]:
    """Yield the required arguments that are absent, null or blank where neither is a value."""
    wanted = [*listed.required, *(name for side in sides for name in side.required)]
    for name in dict.fromkeys(wanted):
        schemas = [side.properties.get(name) for side in sides]
        if name not in arguments:
            yield name
        elif (value := arguments[name]) is None:
            if name in listed.required or not any(map(_takes_null, schemas)):
                yield name
        elif isinstance(value, str) and not value.strip() and not any(map(_takes_empty, schemas)):
            yield name


def _takes_null(schema: object) -> bool:
    types = schema.get("type") if isinstance(schema, Mapping) else None
    return types == "null" or (isinstance(types, list) and "null" in types)


def _takes_empty(schema: object) -> bool:
    # An explicit `minLength: 0` is how a schema says that an empty text is a value.
    return isinstance(schema, Mapping) and schema.get("minLength") == 0


def _top_names(sides: list[_Side], listed: ToolPolicy) -> set[str]:
    named = {name for side in sides for name in (*side.properties, *side.required)}
    return {*named, *listed.required, *listed.irrelevant}
