"""Stop sequences: plain text is passed on up to the first one, and generation ends there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


class StopText:
    """Takes plain text in pieces and passes on what stands before the first stop sequence.

    Args:
        stops: the sequences; empty ones are ignored.
        on_text: gets the text; the end that may become a sequence waits.
    """

    def __init__(self, stops: Sequence[str], on_text: Callable[[str], None] | None) -> None:
        self._stops = tuple(filter(None, stops))
        self._on_text = on_text
        self._text = ""
        self._sent = 0
        self.found = False

    def push(self, piece: str) -> None:
        """Take the next piece."""
        if self.found:
            return
        self._text += piece
        end = self._first(self._text)
        self.found = end is not None
        self._send(len(self._text) - self._waiting() if end is None else end)

    def finish(self) -> None:
        """Pass on what waited, as no more text comes."""
        if not self.found:
            self._send(len(self._text))

    def cut(self, text: str) -> str:
        """Return `text` up to the first sequence."""
        return text[: self._first(text)]

    def _first(self, text: str) -> int | None:
        places = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(places, default=None)

    def _waiting(self) -> int:
        """Return the length of the text's longest end that begins a sequence."""
        lengths = (
            length
            for stop in self._stops
            for length in range(1, len(stop))
            if self._text.endswith(stop[:length])
        )
        return max(lengths, default=0)

    def _send(self, end: int) -> None:
        if end > self._sent and self._on_text is not None:
            self._on_text(self._text[self._sent : end])
        self._sent = max(self._sent, end)


class EarlyEnd(StoppingCriteria):
    """Ends every row as soon as a question is answered with yes."""

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # noqa: ARG002
        """Return (rows,) bool."""
        rows = len(input_ids)
        return torch.full((rows,), self._wanted(), dtype=torch.bool, device=input_ids.device)
