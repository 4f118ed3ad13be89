"""Whether the arguments of a call are those of its label: the one place that compares values.

The rules are those of BFCL's own checker, whose traps have made false labels before: a list of
accepted values is not a list value, a text is compared without its spelling, true is not 1.

Two rules go beyond it. Equal numbers are equal, written 5 or 5.0, as JSON Schema has it. Texts are
compared in Unicode's composed form.

Source: Patil et al., "The Berkeley Function Calling Leaderboard", ICML 2025, and its checker.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

LEFT_OUT = ""
"""Among accepted values: the argument may be left out."""

_ABSENT = object()
_UNSPOKEN = re.compile(r"[\s,./\-_*^]")


def standard_text(text: str) -> str:
    """Return `text` as it is compared: no case, spaces or `,./-_*^`, one kind of quotes.

    "April 1, 2024" and "april 1 2024" are then one text.
    """
    composed = unicodedata.normalize("NFC", text)
    return _UNSPOKEN.sub("", composed).casefold().replace("'", '"')


def same_arguments(arguments: Mapping[str, Any], label: Mapping[str, Any], schema: Schema) -> bool:
    """Return whether a call carries exactly the labelled arguments.

    An argument on one side alone is no difference if it has the value that the schema gives as
    its default.

    Args:
        arguments: of the call.
        label: the right values.
        schema: JSON Schema of the arguments object.
    """
    for name in {*arguments, *label}:
        default = _property(schema, name).get("default", _ABSENT)
        mine, theirs = arguments.get(name, default), label.get(name, default)
        if mine is _ABSENT or theirs is _ABSENT or not same_value(mine, theirs):
            return False
    return True


def accepted_arguments(
    arguments: Mapping[str, Any], accepted: Mapping[str, Any], schema: Schema
) -> bool:
    """Return whether every argument of a call has one of its accepted values.

    An argument that is not listed is wrong. One may be missing if "" is among its accepted values
    and the schema does not require it.

    Args:
        arguments: of the call, or of an object inside it.
        accepted: argument -> accepted values; a value that is no list stands alone.
        schema: JSON Schema of the object.
    """
    if not set(arguments) <= set(accepted):
        return False
    required = schema.get("required", ())
    for name, found in accepted.items():
        values = found if isinstance(found, list | tuple) else [found]
        if name not in arguments:
            if LEFT_OUT not in values or name in required:
                return False
        elif not _is_accepted(arguments[name], values, _property(schema, name)):
            return False
    return True


def _is_accepted(value: Any, values: Sequence[Any], schema: Schema) -> bool:
    if value == LEFT_OUT and isinstance(value, str):
        # Where a text is wanted, an empty one says as much as none.
        return LEFT_OUT in values and schema.get("type", "string") == "string"
    return any(
        _matches(value, accepted, schema)
        for accepted in values
        if not (isinstance(accepted, str) and accepted == LEFT_OUT)
    )


def _matches(value: Any, accepted: Any, schema: Schema) -> bool:
    """Return whether `value` is one accepted value, in whose objects lists are alternatives."""
    if isinstance(accepted, Mapping) and _lists_alternatives(accepted):
        return isinstance(value, Mapping) and accepted_arguments(value, accepted, schema)
    if isinstance(accepted, list):
        items = schema.get("items")
        inner = items if isinstance(items, Mapping) else {}
        return _is_list(value, len(accepted)) and all(
            _matches(mine, theirs, inner) for mine, theirs in zip(value, accepted, strict=True)
        )
    return same_value(value, accepted)


def _lists_alternatives(accepted: Mapping[str, Any]) -> bool:
    """Tell an object of alternatives from a plain value: all it holds are lists with content."""
    return all(isinstance(values, list) and values for values in accepted.values())


def same_value(value: Any, label: Any) -> bool:
    """Return whether two JSON values say the same: texts by `standard_text`, lists in order.

    A list of one is not its only element, a text of digits is no number, and true is not 1.
    """
    if isinstance(label, str):
        return isinstance(value, str) and standard_text(value) == standard_text(label)
    if isinstance(label, Mapping):
        return (
            isinstance(value, Mapping)
            and set(value) == set(label)
            and all(same_value(value[name], label[name]) for name in label)
        )
    if isinstance(label, list | tuple):
        return _is_list(value, len(label)) and all(
            same_value(mine, theirs) for mine, theirs in zip(value, label, strict=True)
        )
    if label is None or isinstance(label, bool) or isinstance(value, bool):
        return value is label
    return isinstance(value, int | float) and bool(value == label)


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length


def _property(schema: Schema, name: str) -> Schema:
    """Return the schema of one argument; an empty one where there is none to read."""
    properties = schema.get("properties")
    found = properties.get(name) if isinstance(properties, Mapping) else None
    return found if isinstance(found, Mapping) else {}
