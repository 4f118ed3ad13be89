"""What can be done with a flagged call, what each way costs, and which tool it ends at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.correction.questions import between_two, contrast, re_ask
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.judged_calls import JudgedCall
from toolguard.calibration.reading.collect import collect
from toolguard.calibration.reading.row_packs import BATCH_TOKENS
from toolguard.guard.errors import ToolguardError

Targets = Mapping[str, str]
"""Record id -> the tool that its call is turned into; a record that is missing keeps its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionMethod:
    """One way to correct a flagged call.

    Args:
        name: what options and reports call it.
        words: what it does, for people.
        prompts: extra prompts a call that go through the model.
        tokens: extra tokens a call that are decoded, in words.
        question: what is put to the model again; None where nothing is.
        above: P(wrong) up to which a redirect leaves a call.
        served: whether the guard can do it by itself while a call is written.
    """

    name: str
    words: str
    prompts: int
    tokens: str
    question: Callable[[JudgedCall], Record | None] | None = None
    above: float = 0.0
    served: bool = False

    def cost(self) -> dict[str, Any]:
        """Return the cost as plain JSON values."""
        return {"prompts": self.prompts, "tokens": self.tokens}


_AGAIN = "the name again, where it changes"
_ANSWERED = f"a name, and {_AGAIN}"

KEEP = CorrectionMethod(
    name="keep", words="the call as it is", prompts=0, tokens="none", served=True
)
REDIRECT = CorrectionMethod(
    name="redirect",
    words="the best other tool, if all signals agree",
    prompts=0,
    tokens=_AGAIN,
    served=True,
)
REDIRECT_ABOVE_HALF = CorrectionMethod(
    name="redirect_above_half",
    words="the same, for calls more likely wrong than right",
    prompts=0,
    tokens=_AGAIN,
    above=0.5,
    served=True,
)
METHODS: tuple[CorrectionMethod, ...] = (
    KEEP,
    REDIRECT,
    REDIRECT_ABOVE_HALF,
    CorrectionMethod(
        name="between_two",
        words="asked again with the best two tools alone",
        prompts=1,
        tokens=_ANSWERED,
        question=between_two,
        served=True,
    ),
    CorrectionMethod(
        name="contrast",
        words="asked which of the best two fits, in words",
        prompts=1,
        tokens=_ANSWERED,
        question=contrast,
    ),
    CorrectionMethod(
        name="re_ask",
        words="asked again, told that the tool may be wrong",
        prompts=1,
        tokens=_ANSWERED,
        question=re_ask,
    ),
)
"""All that go on with the call. To ask the user stops it and is counted beside them."""

SERVED = tuple(method for method in METHODS if method.served)
"""Those that a profile can offer."""


def targets_of(
    method: CorrectionMethod,
    calls: Sequence[JudgedCall],
    loaded: LoadedModel,
    wire: WireFormat,
    *,
    names_only: bool = False,
    batch_tokens: int = BATCH_TOKENS,
) -> Targets:
    """Return the tool that each call ends at; a call that cannot be asked about is left out.

    Args:
        method: a correction.
        calls: flagged calls.
        loaded: the model.
        wire: how it writes calls.
        names_only: tell the model the tools' names alone.
        batch_tokens: most new tokens in one forward.
    """
    if method.question is None:
        if method.name == KEEP.name:
            return {call.record.id: call.chosen for call in calls}
        return {
            call.record.id: call.rival
            for call in calls
            if call.rival is not None and (call.p_wrong or 0.0) > method.above
        }
    questions = [question for call in calls if (question := method.question(call)) is not None]
    answers = collect(
        loaded,
        wire,
        questions,
        layers=(),
        on_skip=_leave,
        names_only=names_only,
        batch_tokens=batch_tokens,
    )
    return {answer.record_id: answer.menu_names[answer.chosen] for answer in answers}


def _leave(_record: Record, _error: ToolguardError) -> None:
    """A question that is too long, or that the template refuses, leaves the call as it is."""
