"""Which prompts and pairs of tools the steering comparison runs on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from random import Random

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.judged_calls import JudgedCall
from toolguard.calibration.prompts import PromptWriter
from toolguard.calibration.records import Record
from toolguard.calibration.steering import SteeringCase
from toolguard.guard.errors import ToolguardError
from toolguard.guard.profile import Profile


def draw_cases(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    calls: Sequence[JudgedCall],
    *,
    most: int,
    seed: int,
) -> list[SteeringCase]:
    """Return at most `most` prompts, each with another calibrated tool of its menu as target.

    Every record is used once before one is used again, and no record twice with one target.

    Args:
        loaded: the model.
        wire: format of the calls.
        profile: whose means steer; both tools of a pair must be calibrated.
        calls: where prompts and the model's own choices come from.
        most: bound on the cases.
        seed: of the draw.
    """
    rng = Random(seed)
    calibrated = {tool.name for tool in profile.meta.tools if tool.status == "calibrated"}
    usable = [call for call in calls if call.chosen in calibrated]
    rng.shuffle(usable)
    writer = PromptWriter(loaded, wire, names_only=profile.meta.preset == "paper")
    pairs = islice(_pairs(usable, calibrated, rng), most)
    return [_case(writer, wire, call, target) for call, target in pairs]


def _pairs(
    calls: Sequence[JudgedCall], calibrated: set[str], rng: Random
) -> Iterator[tuple[JudgedCall, str]]:
    targets = []
    for call in calls:
        others = [n for n in call.record.menu.names if n in calibrated and n != call.chosen]
        rng.shuffle(others)
        targets.append(others)
    for names in zip_longest(*targets):
        for call, target in zip(calls, names, strict=True):
            if target is not None:
                yield call, target


def _case(writer: PromptWriter, wire: WireFormat, call: JudgedCall, target: str) -> SteeringCase:
    prompt = writer.write([call.record], _refuse).prompts[0]
    return SteeringCase(
        prompt=tuple(prompt.suffix.tolist()),
        turn=wire.prefix(),
        trie=prompt.trie,
        menu=call.record.menu,
        source=call.chosen,
        target=target,
    )


def _refuse(_record: Record, error: ToolguardError) -> None:
    raise error
