"""One guarded `generate`: its hooks, its rows and their evidence. Nothing outlives the request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, StoppingCriteria

from toolguard.adapters.blocks import ModelView, tap_blocks
from toolguard.adapters.decision_token import NameTokens
from toolguard.adapters.name_watch import NameWatcher, NameWritten, TokenTexts
from toolguard.adapters.wire.base import WireFormat
from toolguard.guard.decision import Decision
from toolguard.guard.errors import ToolguardError
from toolguard.guard.guard import Evidence, Guard, fault_text
from toolguard.guard.profile import MenuView
from toolguard.guard.tools import Menu
from toolguard.guard.trie import ROOT, NameTrie, TrieScorer

_ACTIVE: ContextVar[object | None] = ContextVar("toolguard_request", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class MenuPlan:
    """Everything about a menu that requests share.

    Args:
        menu: the tools on offer.
        names: their tokens.
        trie: the same as a trie.
        view: what the profile knows of them.
        banned: trie node -> child tokens under which every name is denied.
    """

    menu: Menu
    names: NameTokens
    trie: NameTrie
    view: MenuView
    banned: Mapping[int, tuple[int, ...]]


def banned_children(trie: NameTrie, denied: frozenset[str]) -> dict[int, tuple[int, ...]]:
    """Return, for each node with some but not all ways denied, the child tokens that lead to denied names alone.

    Where every way is denied nothing is masked: the name is then judged, and vetoed, when it is complete.
    """
    if not denied:
        return {}
    refused = frozenset(i for i, name in enumerate(trie.names) if name in denied)
    banned: dict[int, tuple[int, ...]] = {}
    for node in trie.branch_nodes:
        children = trie.children(node)
        closed = tuple(t for t in children if refused.issuperset(trie.names_below(trie.advance(node, t) or ROOT)))
        if closed and len(closed) < len(children):
            banned[node] = closed
    return banned


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A decision and where its name starts in the turn's text (characters) and tokens."""

    decision: Decision
    start: int
    first_token: int


@dataclass(slots=True)
class Row:
    """One sequence of the batch."""

    watcher: NameWatcher
    prompt_length: int
    scorer: TrieScorer
    hidden: Tensor | None = None
    fault: str = ""
    steered_to: str | None = None
    finished: bool = False
    stopped_by_guard: bool = False
    judged: list[Judged] = field(default_factory=list)

    @property
    def pending_redirect(self) -> Judged | None:
        """The redirect that stopped this row, if one did."""
        last = self.judged[-1] if self.judged else None
        return last if self.stopped_by_guard and last and last.decision.action == "redirect" else None


class GuardedRequest:
    """Watches every row of one `generate` call and stops those whose call may not go on.

    Args:
        parts: the model's parts.
        layer: block that is read.
        guard: judges.
        plan: the menu.
        texts: decodes tokens.
        wire: the format of calls.
        end_tokens: ids that end a turn.
        hold_for_person: whether a call that wants confirmation goes on to its arguments, to be asked about as a whole.
    """

    def __init__(
        self,
        parts: ModelView,
        layer: int,
        guard: Guard,
        plan: MenuPlan,
        texts: TokenTexts,
        wire: WireFormat,
        end_tokens: frozenset[int],
        *,
        hold_for_person: bool,
    ) -> None:
        self._parts, self._layer, self._guard, self._plan = parts, layer, guard, plan
        self._texts, self._wire, self._end_tokens = texts, wire, end_tokens
        self._hold_for_person = hold_for_person
        self.rows: list[Row] = []

    def add_row(self, prompt_length: int, *, lead: str = "", written: Sequence[int] = (), skip_name: bool = False) -> Row:
        """Add a row.

        Args:
            prompt_length: tokens before the turn, padding not counted.
            lead: text of the turn that belongs to the prompt.
            written: tokens of the turn that stand in the prompt already.
            skip_name: whether a name at their end was forced and needs no verdict.
        """
        watcher = NameWatcher(self._texts, self._wire, self._plan.trie, self._plan.names, lead)
        if written:
            watcher.prime(written)
        if skip_name:
            watcher.skip_name()
        row = Row(watcher=watcher, prompt_length=prompt_length, scorer=TrieScorer(self._plan.trie))
        self.rows.append(row)
        return row

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Read and steer through hooks while the block runs; all of them are gone afterwards, whatever happens."""
        with ExitStack() as stack:
            token = _ACTIVE.set(self)
            stack.callback(_ACTIVE.reset, token)
            stack.enter_context(tap_blocks(self._parts, [self._layer], self._on_hidden))
            stack.callback(model.register_forward_hook(self._on_output).remove)
            yield

    def _on_hidden(self, _layer: int, hidden: Tensor) -> Tensor | None:
        # hidden: (rows, positions, dim). A generate nested in a callback has another request active.
        if _ACTIVE.get() is not self:
            return None
        edited: Tensor | None = None
        for index, row in enumerate(self.rows):
            if row.finished or not row.watcher.at_decision:
                continue
            row.hidden = hidden[index, -1].detach().clone()
            vector = self._steering(row)
            if vector is not None:
                edited = hidden.clone() if edited is None else edited
                edited[index, -1] += vector.to(device=hidden.device, dtype=hidden.dtype)
        return edited

    def _steering(self, row: Row) -> Tensor | None:
        if row.hidden is None or row.watcher.off_position:
            return None
        try:
            found = self._guard.steering_direction(row.hidden, self._plan.view)
        except ToolguardError as error:
            row.fault = fault_text(error)
            return None
        if found is None:
            return None
        row.steered_to, vector = found
        return vector

    def _on_output(self, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if _ACTIVE.get() is not self:
            return
        logits = output.logits  # (rows, positions, vocab); the last position is the one generation goes on from
        for index, row in enumerate(self.rows):
            watcher = row.watcher
            if row.finished or not watcher.in_name or watcher.node is None:
                continue
            try:
                row.scorer.visit(watcher.node, logits[index, -1])
            except ToolguardError as error:
                row.fault = fault_text(error)

    def feed(self, index: int, token: int) -> bool:
        """Take the row's next token; return whether the guard stops the row here."""
        row = self.rows[index]
        if row.finished:
            return False
        written = row.watcher.feed(token)
        if written is not None:
            row.stopped_by_guard = not self._judge(row, written)
        row.finished = row.stopped_by_guard or token in self._end_tokens
        return row.stopped_by_guard

    def _judge(self, row: Row, written: NameWritten) -> bool:
        """Judge a complete name, record it, and return whether the row goes on."""
        decision = self._guard.check(self._evidence(row, written), self._plan.view)
        row.judged.append(Judged(decision=decision, start=written.start, first_token=written.first_token))
        row.scorer = TrieScorer(self._plan.trie)
        row.hidden, row.fault, row.steered_to = None, "", None
        if decision.action == "redirect":
            return False
        return decision.executes or (decision.action == "confirm" and self._hold_for_person)

    def _evidence(self, row: Row, written: NameWritten) -> Evidence:
        fault = row.fault
        canonical = row.watcher.node is not None and self._plan.trie.name_at(row.watcher.node) == written.name
        if not fault and written.name in self._plan.trie.names:
            if row.watcher.off_position:
                fault = "the call did not open at the calibrated decision token"
            elif row.hidden is None:
                fault = "the decision token was not read"
            elif not canonical:
                fault = "the name was not spelled in its canonical tokens"
        read = not fault
        return Evidence(
            chosen=written.name,
            hidden=row.hidden if read else None,
            logprob=row.scorer.scores() if read and canonical else None,
            steered_to=row.steered_to,
            position=row.prompt_length + written.first_token - 1,
            fault=fault,
        )


class WatchCriteria(StoppingCriteria):  # type: ignore[misc]
    """Feeds each new token to the request and stops the rows it closes."""

    def __init__(self, request: GuardedRequest, on_token: Any | None = None) -> None:
        self._request = request
        self._on_token = on_token

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Return (rows,) bool: whether the guard stops the row."""
        tokens = input_ids[:, -1].tolist()
        stopped = [self._request.feed(index, token) for index, token in enumerate(tokens)]
        if self._on_token is not None:
            self._on_token()
        return torch.tensor(stopped, dtype=torch.bool, device=input_ids.device)


class DeniedNameMask(LogitsProcessor):  # type: ignore[misc]
    """Gives no probability to tokens that lead to denied names alone."""

    def __init__(self, request: GuardedRequest, banned: Mapping[int, tuple[int, ...]]) -> None:
        self._request = request
        self._banned = banned

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return (rows, vocab) scores with the banned children of each row's trie node at -inf."""
        masked = scores
        for index, row in enumerate(self._request.rows):
            node = row.watcher.node if row.watcher.in_name and not row.finished else None
            banned = self._banned.get(node, ()) if node is not None else ()
            if not banned:
                continue
            closed = scores[index].clone()
            closed[list(banned)] = -torch.inf
            # Another processor may have left denied tokens alone; the verdict at the name's end stops them.
            if bool(torch.isfinite(closed).any()):
                masked = scores.clone() if masked is scores else masked
                masked[index] = closed
        return masked
