"""What stands inside HF `generate` for a guarded request: one criterion, two logits processors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from toolguard.adapters.request import GuardedRequest


class WatchCriteria(StoppingCriteria):
    """Feeds each new token to the request and stops the rows it closes.

    Must be the last criterion: it arms the request for the next step.

    Args:
        request: what watches.
        on_token: called after each step.
    """

    def __init__(self, request: GuardedRequest, on_token: Callable[[], None] | None = None) -> None:
        self._request = request
        self._on_token = on_token
        self._none_stopped: Tensor | None = None
        # generate pads finished rows only if some criterion has this attribute; without it a
        # stopped row would go on writing for as long as the others of its batch.
        self.eos_token_id = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # noqa: ARG002
        """Return (rows,) bool: whether the guard stops the row."""
        tokens = input_ids[:, -1].tolist()
        stopped = [self._request.feed(index, token) for index, token in enumerate(tokens)]
        if self._on_token is not None:
            self._on_token()
        self._request.arm()
        if any(stopped):
            return torch.tensor(stopped, dtype=torch.bool, device=input_ids.device)
        if self._none_stopped is None:  # made once: on an accelerator each one is a transfer
            self._none_stopped = torch.zeros(
                len(stopped), dtype=torch.bool, device=input_ids.device
            )
        return self._none_stopped


class RequiredNameMask(LogitsProcessor):
    """Leaves in a turn's first name only tokens that lead to a name the turn must call."""

    def __init__(self, request: GuardedRequest) -> None:
        self._request = request

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Return (rows, vocab) scores with all but the open children of each row's node at -inf."""
        masked = scores
        for index, row in enumerate(self._request.rows):
            node = None if row.finished or row.judged else row.watcher.node
            tokens = [] if node is None else list(self._request.plan.open_tokens(node))
            if not tokens:
                continue
            masked = scores.clone() if masked is scores else masked
            kept = scores[index, tokens]
            masked[index] = -torch.inf
            # Another processor may have closed all of them, and yet one must be written.
            masked[index, tokens] = kept if bool(torch.isfinite(kept).any()) else 0.0
        return masked


class DeniedNameMask(LogitsProcessor):
    """Gives no probability to tokens that lead to denied names alone."""

    def __init__(self, request: GuardedRequest) -> None:
        self._request = request

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Return (rows, vocab) scores with the banned children of each row's trie node at -inf."""
        masked = scores
        for index, row in enumerate(self._request.rows):
            node = None if row.finished else row.watcher.node
            banned = () if node is None else self._request.plan.banned.get(node, ())
            if not banned:
                continue
            closed = scores[index].clone()  # (vocab,)
            closed[list(banned)] = -torch.inf
            # Another processor may have left denied tokens alone; the name's end vetoes them.
            if bool(torch.isfinite(closed).any()):
                masked = scores.clone() if masked is scores else masked
                masked[index] = closed
        return masked
