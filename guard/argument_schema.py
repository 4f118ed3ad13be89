"""JSON Schemas of arguments: checked when a policy enters, compiled once, never fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from toolguard.guard.tools import canonical_json

COMPILED = 1024  # schemas kept ready; each is a tool's or a policy section's

# Words of draft 2020-12 by what they hold: a schema, a list of schemas, schemas by name, a value.
_ONE = frozenset(
    (
        *("additionalProperties", "unevaluatedProperties", "propertyNames"),
        *("items", "unevaluatedItems", "contains"),
        *("not", "if", "then", "else"),
    )
)
_LIST = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_MAP = frozenset(("properties", "patternProperties", "$defs", "dependentSchemas"))
_PLAIN = frozenset(
    (
        *("$ref", "$comment", "title", "description", "default", "examples"),
        *("deprecated", "readOnly", "writeOnly"),
        *("type", "enum", "const", "format", "pattern", "maxLength", "minLength"),
        *("multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"),
        *("maxItems", "minItems", "uniqueItems", "maxContains", "minContains"),
        *("maxProperties", "minProperties", "required", "dependentRequired"),
    )
)
_FORMATS = Draft202012Validator.FORMAT_CHECKER
_NOWHERE: Registry[Any] = Registry()  # a reference out of the schema finds nothing, so no network


def check_constraints(schema: Mapping[str, Any]) -> None:
    """Check that a policy's schema is one whose every word counts.

    JSON Schema ignores words it does not know; in a policy a misspelt limit would be no limit.

    Raises:
        ValueError: if the schema is not valid, holds an unknown word or a format that cannot be
            checked, or refers to anything outside itself.
    """
    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        place = ".".join(map(str, error.absolute_path)) or "the schema"
        raise ValueError(f"no JSON Schema of draft 2020-12: {place}: {error.message}") from None
    root = DRAFT202012.create_resource(dict(schema))
    resolver = _NOWHERE.resolver_with_root(root)
    for part in _parts(schema):
        if unknown := sorted(set(part) - _ONE - _LIST - _MAP - _PLAIN):
            raise ValueError(f"unknown or unsupported words: {', '.join(unknown)}")
        if (named := part.get("format")) is not None and named not in _FORMATS.checkers:
            raise ValueError(f"the format {named!r} cannot be checked; write a pattern")
        if (reference := part.get("$ref")) is not None:
            if not reference.startswith("#"):
                raise ValueError(f"$ref {reference!r} points outside of the schema")
            try:
                resolver.lookup(reference)
            except Unresolvable:
                raise ValueError(f"$ref {reference!r} points at nothing") from None


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the schema and every schema inside it."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Mapping):
            continue
        yield part
        for word, value in part.items():
            if word in _ONE:
                waiting.append(value)
            elif word in _LIST and isinstance(value, list):
                waiting.extend(value)
            elif word in _MAP and isinstance(value, Mapping):
                waiting.extend(value.values())


def declared_names(schema: Mapping[str, Any]) -> frozenset[str]:
    """Return the argument names that the schema tells, at any depth.

    Any other name in a call is free text of the model, which no record may hold.
    """
    return frozenset(
        name
        for part in _parts(schema)
        if isinstance(found := part.get("properties"), Mapping)
        for name in found
    )


def compiled(schema: Mapping[str, Any], *, formats: bool = False) -> Draft202012Validator:
    """Return a validator that fetches nothing; equal schemas share one.

    Args:
        schema: of an arguments object.
        formats: check `format`, which is otherwise a remark.

    Raises:
        SchemaError: if the schema is not valid.
    """
    return _compiled(canonical_json(schema), formats)


@lru_cache(maxsize=COMPILED)
def _compiled(text: str, formats: bool) -> Draft202012Validator:  # noqa: FBT001 - a cache's key
    schema = json.loads(text)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(
        schema, registry=_NOWHERE, format_checker=_FORMATS if formats else None
    )
