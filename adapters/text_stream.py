"""Plain text as it is written, held back as soon as it might be the beginning of a tool call."""

from __future__ import annotations

from collections.abc import Callable

from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.turn import TURN_END

# What may stand right before a call in formats whose calls begin with a bracket.
_IN_FRONT = ("```", "<|python_")


class TextStream:
    """Passes on a turn's text up to where a call may begin; `finish` passes on what else was text.

    White space is held back until more text follows, because around calls it is no content.

    Args:
        wire: whose calls are held back.
        on_text: gets each new piece of plain text.
    """

    def __init__(self, wire: WireFormat, on_text: Callable[[str], None]) -> None:
        opening = wire.prefix().split("\n")[0]
        tag = len(opening) > 1 and opening[-1] in ">]"
        self._marks = (opening,) if tag else (opening[:1], *_IN_FRONT)
        self._holds_all = not opening  # every text may be a name
        self._on_text = on_text
        self._sent = ""

    def push(self, text: str) -> None:
        """Take the turn's whole text so far."""
        if self._holds_all or text.endswith("\ufffd"):  # half a character is not text yet
            return
        end = TURN_END.search(text)
        text = text[: end.start()] if end else text
        safe = text[: self._first_mark(text)].rstrip()
        if len(safe) > len(self._sent) and safe.strip():
            self._emit(safe[len(self._sent) :])

    def finish(self, content: str) -> None:
        """Take the turn's plain text, now that its calls are known."""
        sent = self._sent if content.startswith(self._sent) else self._sent.lstrip()
        if content.startswith(sent) and len(content) > len(sent):
            self._emit(content[len(sent) :])

    def _first_mark(self, text: str) -> int:
        """Return where the first mark begins, whole or cut off by the end of the text."""
        found = [len(text)]
        for mark in self._marks:
            if (whole := text.find(mark)) >= 0:
                found.append(whole)
            cut = range(max(0, len(text) - len(mark) + 1), len(text))
            found.extend(at for at in cut if mark.startswith(text[at:]))
        return min(found)

    def _emit(self, piece: str) -> None:
        self._sent += piece
        self._on_text(piece)
