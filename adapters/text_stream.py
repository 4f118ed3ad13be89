"""Plain text as it is written, held back as soon as it might be the beginning of a tool call."""

from __future__ import annotations

from collections.abc import Callable

from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.turn import TURN_END


class TextStream:
    """Passes on the text of a turn up to where a call may begin; `finish` passes on what turned out to be text.

    Args:
        wire: whose calls are held back.
        on_text: gets each new piece of plain text.
    """

    def __init__(self, wire: WireFormat, on_text: Callable[[str], None]) -> None:
        self._mark = wire.prefix().split("\n")[0][:1]
        self._on_text = on_text
        self._sent = 0

    def push(self, text: str) -> None:
        """Take the turn's whole text so far."""
        end = TURN_END.search(text)
        text = text[: end.start()] if end else text
        if not self._mark:  # every text may be a name
            return
        call = text.find(self._mark)
        safe = len(text) if call < 0 else call
        if safe > self._sent and not text.endswith("\ufffd"):  # half a character is not text yet
            self._emit(text[self._sent : safe])

    def finish(self, content: str) -> None:
        """Take the turn's plain text, now that its calls are known."""
        if len(content) > self._sent:
            self._emit(content[self._sent :])

    def _emit(self, piece: str) -> None:
        self._sent += len(piece)
        self._on_text(piece)
