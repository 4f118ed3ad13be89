"""Wire formats: how each model family is told about tools and writes its calls."""

if __name__ != "toolguard.adapters.wire":
    raise ImportError(
        f"import this package as toolguard.adapters.wire, not as {__name__}; see CONTRIBUTING.md"
    )

from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.detection import FORMATS, choose_format, detect_format, get_format
from toolguard.adapters.wire.turn import (
    CallSpan,
    NameSpan,
    ParsedTurn,
    ParseErrorKind,
    opens_thought,
)

__all__ = [
    "FORMATS",
    "CallSpan",
    "NameSpan",
    "ParseErrorKind",
    "ParsedTurn",
    "WireFormat",
    "choose_format",
    "detect_format",
    "get_format",
    "opens_thought",
]
