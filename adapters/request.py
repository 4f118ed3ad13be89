"""One guarded `generate`: its hooks, its rows and their evidence. Nothing outlives the request."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from toolguard.adapters.blocks import ModelView, tap_blocks
from toolguard.adapters.menu_plan import MenuPlan
from toolguard.adapters.name_watch import NameWatcher, NameWritten, TokenTexts
from toolguard.adapters.opening_watch import OpeningWatcher
from toolguard.guard.answer_gate import opening_tokens
from toolguard.guard.decision import Decision
from toolguard.guard.errors import ToolguardError
from toolguard.guard.guard import Evidence, Guard, fault_text
from toolguard.guard.trie import TrieScorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A decision and where its name starts in the turn's text (characters) and tokens."""

    decision: Decision
    start: int
    first_token: int


@dataclass(slots=True, kw_only=True)
class Row:
    """One sequence of the batch.

    Args:
        watcher: follows its tokens.
        prompt_length: tokens before the turn, padding not counted.
        blind: whether padding stands after the prompt, so that generation does not go on from the
            prompt's last token.
        opening: follows where the turn's first call could start; None if nobody asks.
        hidden: (dim,) read at the decision token the row is behind, or None.
        scorer: gathers the name's log-probabilities from there on.
        fault: why that reading failed; empty if it did not.
        steered_to: tool the state was pushed towards there.
        finished: whether nothing more is read.
        stopped_by_guard: whether the guard ended the row.
        judged: every decision, in the order written.
    """

    watcher: NameWatcher
    prompt_length: int
    blind: bool
    opening: OpeningWatcher | None = None
    hidden: Tensor | None = None
    scorer: TrieScorer | None = None
    fault: str = ""
    steered_to: str | None = None
    finished: bool = False
    stopped_by_guard: bool = False
    judged: list[Judged] = field(default_factory=list)

    @property
    def at_opening(self) -> bool:
        """Whether the turn's first call could start after the last token."""
        return self.opening is not None and self.opening.at_opening

    @property
    def pending_redirect(self) -> Judged | None:
        """The redirect that stopped this row, if one did."""
        last = self.judged[-1] if self.judged and self.stopped_by_guard else None
        return last if last and last.decision.action == "redirect" else None

    def forget_reading(self) -> None:
        """Drop the evidence: it belongs to one name only."""
        self.hidden, self.scorer, self.fault, self.steered_to = None, None, "", None


class GuardedRequest:
    """Watches every row of one `generate` call and stops those whose call may not go on.

    Args:
        parts: the model's parts.
        layer: block that is read.
        guard: judges.
        plan: the menu.
        texts: decodes tokens.
        end_tokens: ids at which `generate` ends a row.
        hold_for_person: whether a call that wants confirmation goes on to its arguments, to be
            asked about as a whole.
    """

    def __init__(
        self,
        parts: ModelView,
        layer: int,
        guard: Guard,
        plan: MenuPlan,
        texts: TokenTexts,
        end_tokens: frozenset[int],
        *,
        hold_for_person: bool,
    ) -> None:
        self.plan = plan
        self.rows: list[Row] = []
        self._parts, self._layer, self._guard = parts, layer, guard
        gate = guard.profile.gate if guard.profile else None
        self._gate_layer = None if gate is None else gate.section.layer
        self._texts, self._end_tokens = texts, end_tokens
        self._hold_for_person = hold_for_person
        self._thread = threading.get_ident()
        self._model: nn.Module = parts.model
        self._hooks = ExitStack()
        self._hooked = False
        self._armed = False

    def add_row(
        self,
        prompt_length: int,
        *,
        lead: str = "",
        written: Sequence[int] = (),
        forced: bool = False,
        blind: bool = False,
    ) -> Row:
        """Add a row.

        A name that is complete in `written` is judged at once; as nothing was read where it began,
        it passes only by a static rule, or in monitor mode.

        Args:
            prompt_length: tokens before the turn, padding not counted.
            lead: text of the turn that belongs to the prompt.
            written: tokens of the turn that stand in the prompt already.
            forced: whether the names in them were judged before, the last one being forced.
            blind: see `Row`.
        """
        watcher = NameWatcher(self._texts, self.plan.trie, self.plan.names, lead)
        row = Row(watcher=watcher, prompt_length=prompt_length, blind=blind)
        names = watcher.prime(written) if written else ()
        if self._gate_layer is not None:
            # Looks at the text as it stands now: what the caller wrote is not the model's start.
            openings = opening_tokens(self.plan.names.prefix_ids, self.plan.trie)
            row.opening = OpeningWatcher(lambda: watcher.text, openings)
        if forced:
            watcher.skip_name()
        else:
            self._judge_all(row, names)
        self.rows.append(row)
        return row

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Read and steer through hooks while the block runs; they are gone whatever happens."""
        self._thread = threading.get_ident()
        self._model = model
        try:
            self.arm()
            yield
        finally:
            self._unhook()

    def arm(self) -> None:
        """Read the next forward of this thread, which is the next step of this request.

        Any other forward in between is not ours: a logits processor's, or that of a generate that
        a callback runs. Hooks are on the model only where a row stands in a name, or where a call
        could start: most steps of a turn have nothing to read, and a module with a hook is slower
        to call.
        """
        self._armed = any(
            (row.watcher.node is not None or row.at_opening) and not row.finished
            for row in self.rows
        )
        if self._armed and not self._hooked:
            self._hook()
        elif self._hooked and not self._armed:
            self._unhook()

    def _hook(self) -> None:
        self._hooked = True
        layers = [self._layer, *([] if self._gate_layer is None else [self._gate_layer])]
        self._hooks.enter_context(tap_blocks(self._parts, layers, self._on_hidden))
        self._hooks.callback(self._model.register_forward_hook(self._on_output).remove)

    def _unhook(self) -> None:
        self._hooks.close()
        self._hooked = False

    def _on_hidden(self, layer: int, hidden: Tensor) -> Tensor | None:
        # hidden: (rows, positions, dim)
        if not self._armed:
            return None
        if layer == self._gate_layer:
            self._keep_openings(hidden)
        return self._read_decisions(hidden) if layer == self._layer else None

    def _keep_openings(self, hidden: Tensor) -> None:
        """Keep the state of each row whose first call could start here."""
        for index, row in enumerate(self.rows):
            if row.opening is not None and row.at_opening and not row.finished:
                row.opening.keep(hidden[index, -1])

    def _read_decisions(self, hidden: Tensor) -> Tensor | None:
        """Read the rows at decision tokens; return the states with what steers them, if any is."""
        edited: Tensor | None = None
        for index, row in enumerate(self.rows):
            if row.finished or not row.watcher.at_decision:
                continue
            vector = self._read(row, hidden[index, -1])
            if vector is not None:
                edited = hidden.clone() if edited is None else edited
                edited[index, -1] += vector.to(device=hidden.device, dtype=hidden.dtype)
        return edited

    def _read(self, row: Row, state: Tensor) -> Tensor | None:
        """Keep the row's state (dim,) and return what to add to it, if it is steered."""
        row.forget_reading()
        row.scorer = TrieScorer(self.plan.trie)
        if row.blind:
            row.fault = "padding stands between the decision token and the name"
            return None
        row.hidden = state.detach().clone()
        if not row.watcher.certain or not self.plan.calibrated_token:
            return None
        try:
            found = self._guard.steering_direction(row.hidden, self.plan.view)
        except ToolguardError as error:
            row.fault = fault_text(error)
            return None
        if found is None:
            return None
        row.steered_to, vector = found
        return vector

    def _on_output(self, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if not self._armed or threading.get_ident() != self._thread:
            return
        self._armed = False
        for index, row in enumerate(self.rows):
            if row.opening is not None and row.at_opening and not row.finished:
                self._close_opening(row, row.opening, output.logits[index, -1])
            if row.finished or row.watcher.node is None or row.scorer is None:
                continue
            # logits: (rows, positions, vocab); generation goes on from the last position.
            try:
                row.scorer.visit(row.watcher.node, output.logits[index, -1])
            except ToolguardError as error:
                row.fault = fault_text(error)

    def _close_opening(self, row: Row, opening: OpeningWatcher, logits: Tensor) -> None:
        if row.blind:
            opening.fail("padding stands where the call could start")
        else:
            opening.close(logits)

    def feed(self, index: int, token: int) -> bool:
        """Take the row's next token; return whether the guard has stopped the row."""
        row = self.rows[index]
        if row.finished:
            return row.stopped_by_guard
        row.blind = False
        names = row.watcher.feed(token)
        if row.opening is not None:
            row.opening.feed(self._texts.piece(token)[0])
        ended = token in self._end_tokens
        if names or ended:
            self._judge_all(row, names or row.watcher.end())
            if row.stopped_by_guard:
                row.watcher.withdraw()
        row.finished = row.stopped_by_guard or ended
        return row.stopped_by_guard

    def finish(self, pad_token: int) -> None:
        """Drop the padding of rows that something other than an end token or the guard ended."""
        for row in self.rows:
            if not row.finished:
                row.watcher.drop_last(pad_token)

    def _judge_all(self, row: Row, names: Sequence[NameWritten]) -> None:
        for written in names:
            if not self._judge(row, written):
                row.finished = row.stopped_by_guard = True
                return

    def _judge(self, row: Row, written: NameWritten) -> bool:
        """Judge a complete name, record it, and return whether the row goes on."""
        decision = self._guard.check(self._evidence(row, written), self.plan.view)
        row.judged.append(
            Judged(decision=decision, start=written.start, first_token=written.first_token)
        )
        row.forget_reading()
        if decision.action == "redirect":
            return False
        return decision.executes or (decision.action == "confirm" and self._hold_for_person)

    def _evidence(self, row: Row, written: NameWritten) -> Evidence:
        fault = row.fault or self._position_fault(row, written)
        whole = not fault and row.scorer is not None
        return Evidence(
            chosen=written.name,
            hidden=row.hidden if whole else None,
            logprob=row.scorer.scores() if whole and row.scorer is not None else None,
            steered_to=row.steered_to,
            position=row.prompt_length + written.first_token - 1,
            # A turn's later calls are other decisions, which calibration did not read.
            opening=row.opening.evidence if row.opening is not None and not row.judged else None,
            fault=fault,
        )

    def _position_fault(self, row: Row, written: NameWritten) -> str:
        if not (written.calibrated_token and self.plan.calibrated_token):
            return "the call did not open at the calibrated decision token"
        if row.hidden is None:
            return "the decision token was not read"
        if not written.canonical:
            return "the name was not spelled in its canonical tokens"
        return ""
