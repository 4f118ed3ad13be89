"""Whether arguments fit a tool's schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError


def fits_schema(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    """Return whether the arguments fit the JSON Schema (draft 2020-12); False if it is broken."""
    try:
        return bool(Draft202012Validator(dict(schema)).is_valid(dict(arguments)))
    except SchemaError:
        return False
