"""A rate as text, as a number and in per cent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rate_text(value: Mapping[str, Any]) -> str:
    """Return a rate as `0.912 [0.900, 0.921]`, or `-` if it is undetermined."""
    if value["value"] is None:
        return "-"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def percent_text(rate: Mapping[str, Any]) -> str:
    """Return a rate as `97.3 [94.8, 98.6]`, in per cent, or `-` if it is undetermined."""
    if rate["value"] is None:
        return "-"
    return f"{100 * rate['value']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
