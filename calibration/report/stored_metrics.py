"""Numbers out of stored JSON that may lack any of them: another version wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolguard.guard.rate import Rate

_PARTS = ("value", "low", "high")


def dug(data: object, *keys: str) -> Any:
    """Return what lies under these keys, one in another; None if one is not there."""
    for key in keys:
        if not isinstance(data, Mapping):
            return None
        data = data.get(key)
    return data


def rate_at(data: object, *keys: str) -> Rate | None:
    """Return the rate under these keys; None if none lies there."""
    found = dug(data, *keys)
    if not isinstance(found, Mapping) or not {*_PARTS, "n"} <= set(found):
        return None
    parts = [found[key] for key in _PARTS]
    if not isinstance(found["n"], int) or not all(_number_or_none(part) for part in parts):
        return None
    value, low, high = parts
    return Rate(value=value, low=low, high=high, n=found["n"])


def words_at(data: object, *keys: str) -> str:
    """Return the text under these keys; empty if none lies there."""
    found = dug(data, *keys)
    return found if isinstance(found, str) else ""


def _number_or_none(part: object) -> bool:
    return part is None or (isinstance(part, int | float) and not isinstance(part, bool))
