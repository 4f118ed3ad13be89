"""Labelled calls as the guard would read them: what `evaluate` measures on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from toolguard.calibration.datasets.near_duplicates import query_fingerprint
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.call_check import check_name
from toolguard.calibration.reading.collect import Observation
from toolguard.guard.calibrator import Calibrator
from toolguard.guard.decision import Reading
from toolguard.guard.profile import MenuView, Profile
from toolguard.guard.signals import ACTIVATION, ALWAYS_READ, LOGPROB, read_signals
from toolguard.guard.tools import Menu, Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCall:
    """One labelled call as the guard would read it.

    Args:
        record: what was asked.
        chosen: the model's greedy whole-name choice.
        wrong: whether that is not a right tool.
        readout_right: whether the activation's best tool is a right one; None if no tool was read.
        margins: signal -> margin of the chosen tool; a signal that could not be read is missing.
        p_wrong: None if a signal is missing.
        trusted: whether the profile vouches for the chosen tool.
        runner_up: the best other tool by log-probability, if the profile vouches for it; else None.
        rival: what a redirect would go to: the best other tool of all signals, if they agree and
            the profile vouches for it; else None.
    """

    record: Record
    chosen: str
    wrong: bool
    readout_right: bool | None
    margins: dict[str, float]
    p_wrong: float | None
    trusted: bool
    runner_up: str | None = None
    rival: str | None = None


@dataclass(slots=True)
class Intake:
    """Sorts the records of one pass and counts what is left out."""

    seen: frozenset[int]
    silent: list[Record] = field(default_factory=list)
    by_id: dict[str, Record] = field(default_factory=dict)
    leaked: int = 0
    toolless: int = 0

    def calls(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records that have a call and were not used in calibration; keep the others."""
        for record in records:
            if not record.tools:
                self.toolless += 1
            elif query_fingerprint(record.query) in self.seen:
                self.leaked += 1
            elif record.is_call:
                self.by_id[record.id] = record
                yield record
            else:
                self.silent.append(record)


class CallJudge:
    """Turns observations into judged calls; views of menus are kept."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._calibrator = Calibrator.from_dict(profile.meta.calibrator)
        self._signals = tuple(dict.fromkeys((*ALWAYS_READ, *profile.meta.signals)))
        self._views: dict[str, MenuView] = {}

    def read(self, record: Record, observation: Observation) -> JudgedCall:
        """Return one call with its margins and P(wrong)."""
        menu = told_menu(record.menu, self._profile)
        key = menu.content_hash
        if key not in self._views:
            self._views[key] = self._profile.view(menu)
        view = self._views[key]
        scores = view.scores(observation.hidden[0])
        read = {LOGPROB: observation.scores, ACTIVATION: scores}
        margins = read_signals(read, observation.chosen, self._signals)
        readable = all(signal in margins for signal in self._calibrator.features)
        chosen = view.names[observation.chosen]
        reading = Reading(
            menu=view.names,
            chosen=chosen,
            scores={signal: tuple(values.tolist()) for signal, values in read.items()},
        )
        return JudgedCall(
            record=record,
            chosen=chosen,
            wrong=check_name(record, chosen) != "right",
            readout_right=int(scores.argmax()) in observation.right
            if view.readout is not None
            else None,
            margins=margins,
            p_wrong=self._calibrator.probability({s: margins[s] for s in self._calibrator.features})
            if readable
            else None,
            trusted=view.statuses[chosen] == "calibrated",
            runner_up=_vouched(reading.runner_up, view),
            rival=_vouched(reading.agreed_rival, view),
        )


def _vouched(name: str | None, view: MenuView) -> str | None:
    return name if name is not None and view.statuses[name] == "calibrated" else None


def told_menu(menu: Menu, profile: Profile) -> Menu:
    """Return the menu as the profile's recipe tells it to the model."""
    if profile.meta.preset != "paper":
        return menu
    return Menu(tuple(Tool(name=name) for name in menu.names))
