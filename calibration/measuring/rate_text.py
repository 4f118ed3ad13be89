"""A rate as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rate_text(value: Mapping[str, Any]) -> str:
    """Return a rate as `0.912 [0.900, 0.921]`, or `-` if it is undetermined."""
    if value["value"] is None:
        return "-"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
