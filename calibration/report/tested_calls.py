"""The calls of the test split as calibration read them: `test_calls.json` beside a profile.

Ids, tool names and numbers; no text of a user. Only reports read it, a guard never does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from toolguard.calibration.fitting.fit_input import CollectedCalls
from toolguard.calibration.labels.labelled_calls import (
    Booleans,
    Floats,
    HiddenBatch,
    LabelledCall,
    Readings,
    menu_scores,
    places_of,
    signals_of,
)
from toolguard.calibration.report.tool_map import ToolMap, map_tools
from toolguard.guard.errors import ArtifactMismatch, ConfigError
from toolguard.guard.profile import Profile
from toolguard.guard.profile_meta import ProfileMeta
from toolguard.guard.readout import ReadoutKind
from toolguard.guard.tools import canonical_json, sha256_text

FILE = "test_calls.json"
Place = tuple[float, float]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Entry(BaseModel):
    """Base of everything in the file: unknown keys and numbers that are not finite refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TestedCall(_Entry):
    """One call of the test split.

    Args:
        record_id: of the record it comes from.
        menu: number of its menu in `TestedCalls.menus`.
        chosen: the model's greedy whole-name choice.
        right: names that count as right, in menu order.
        best: the readout's own best tool.
        signals: see `guard.signals`; None for the margins of a menu of one tool, which are +inf.
        p_wrong: calibrated probability that the choice is wrong.
        trusted: whether the profile vouches for the chosen tool; if not, no guard reads `p_wrong`.
        at: place of its hidden state on the map of the tools; None if there is no map.
    """

    __test__ = False  # not a test, whatever pytest makes of the name

    record_id: str
    menu: Count
    chosen: str
    right: Annotated[tuple[str, ...], Field(min_length=1)]
    best: str
    signals: dict[str, float | None]
    p_wrong: Share
    trusted: bool
    at: Place | None = None

    @property
    def wrong(self) -> bool:
        """Whether the model's choice is not among the right ones."""
        return self.chosen not in self.right

    @property
    def expected(self) -> str:
        """The right tool: the chosen one if it is right, else the first in the menu."""
        return self.right[0] if self.wrong else self.chosen


class MapNotes(_Entry):
    """The plane that `TestedCall.at` lies on, see `tool_map`; `tools` has each tool's place."""

    kind: ReadoutKind
    explained: Share
    tools: dict[str, Place]


class TestedCalls(_Entry):
    """The file.

    Args:
        version: of this file format.
        calibration: hash of what the readings hang on, see `calibration_hash`.
        menus: the menus met, each as tool names in order.
        map: None for fewer than three calibrated tools.
        calls: in the order in which they were read.
    """

    __test__ = False

    version: Literal[1] = 1
    calibration: str
    menus: tuple[tuple[str, ...], ...]
    map: MapNotes | None = None
    calls: tuple[TestedCall, ...]

    @model_validator(mode="after")
    def _calls_fit_their_menus(self) -> Self:
        for call in self.calls:
            names = self.menus[call.menu] if call.menu < len(self.menus) else ()
            if not {call.chosen, call.best, *call.right} <= set(names):
                raise ValueError(f"call {call.record_id!r} names a tool that its menu lacks")
        return self

    def tools_of(self, call: TestedCall) -> tuple[str, ...]:
        """Return the menu of one call."""
        return self.menus[call.menu]

    def signal(self, name: str) -> Floats:
        """Return (calls,) of one signal, larger is safer; +inf where nothing competes."""
        values = (call.signals[name] for call in self.calls)
        return np.array([math.inf if value is None else value for value in values], np.float64)

    @property
    def signal_names(self) -> tuple[str, ...]:
        """The signals that every call has, in the order of the first call."""
        found = self.calls[0].signals if self.calls else {}
        return tuple(name for name in found if all(name in call.signals for call in self.calls))

    @property
    def p_wrong(self) -> Floats:
        """(calls,) P(wrong)."""
        return np.array([call.p_wrong for call in self.calls], np.float64)

    @property
    def wrong(self) -> Booleans:
        """(calls,) outcomes."""
        return np.array([call.wrong for call in self.calls], dtype=bool)

    def save(self, folder: Path) -> None:
        """Write the file into a profile's folder, one call a line.

        Raises:
            ConfigError: if it cannot be written.
        """
        whole = self.model_dump(mode="json")
        calls = ",\n".join(_line(call) for call in whole.pop("calls"))
        head = json.dumps(whole, ensure_ascii=False, allow_nan=False)
        text = f'{head[:-1]}, "calls": [\n{calls}\n]}}\n'
        try:
            (folder / FILE).write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{folder / FILE} cannot be written: {error.strerror}",
                hint="pass --out a folder that can be written",
            ) from error

    @classmethod
    def load(cls, folder: Path, meta: ProfileMeta) -> TestedCalls | None:
        """Return what lies in a profile's folder; None if the profile came without.

        Args:
            folder: the profile's.
            meta: the profile's facts.

        Raises:
            ArtifactMismatch: if the file is damaged, or was written with another calibration.
        """
        path = folder / FILE
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise _unusable(path, _first_fault(error)) from error
        if found.calibration != calibration_hash(meta):
            raise _unusable(path, "it was written with another calibration")
        return found


def calibration_hash(meta: ProfileMeta) -> str:
    """Return the hash of what decides a reading and stays when tools are added."""
    return sha256_text(
        canonical_json(
            [meta.model.fingerprint, meta.dataset_hash, meta.seed, meta.layer, meta.calibrator]
        )
    )


def read_tested_calls(profile: Profile, collected: CollectedCalls) -> TestedCalls:
    """Return the test calls as the profile's readout and calibrator read them.

    Args:
        profile: as fitted to `collected`, its tools in the same order.
        collected: calls and hidden states.
    """
    everything = collected.calls
    test = places_of(everything, "test")
    plane = map_tools(profile)
    readings = Readings.empty(len(everything))
    sights: dict[int, _Sight] = {}
    for batch in collected.layer_pass(profile.meta.layer):
        own = batch.pick([everything[index].split == "test" for index in batch.calls])
        readings.put(profile.readout, everything, own)
        sights |= _sights(profile, everything, own, plane)
    calls = [everything[place] for place in test]
    signals = signals_of(calls, readings.at(test))
    p_wrong = profile.calibrator.probabilities(signals).tolist()
    menus = {call.tools: None for call in calls}
    numbers = {menu: number for number, menu in enumerate(menus)}
    return TestedCalls(
        calibration=calibration_hash(profile.meta),
        menus=tuple(tuple(profile.names[tool] for tool in menu) for menu in menus),
        map=None if plane is None else _notes(plane, profile.names),
        calls=tuple(
            TestedCall(
                record_id=call.record_id,
                menu=numbers[call.tools],
                chosen=profile.names[call.tool],
                right=tuple(profile.names[call.tools[at]] for at in sorted(call.right)),
                best=profile.names[sights[place].best],
                signals={name: _finite(values[row]) for name, values in signals.items()},
                p_wrong=p_wrong[row],
                trusted=profile.meta.tools[call.tool].status == "calibrated",
                at=sights[place].at,
            )
            for row, (place, call) in enumerate(zip(test, calls, strict=True))
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sight:
    """The readout's own best tool for a call, and the call's place on the map."""

    best: int
    at: Place | None


def _sights(
    profile: Profile, calls: Sequence[LabelledCall], batch: HiddenBatch, plane: ToolMap | None
) -> dict[int, _Sight]:
    if not batch.calls:
        return {}
    menus = [calls[index].tools for index in batch.calls]
    best = menu_scores(profile.readout, menus, batch.hidden).argmax(dim=1).tolist()
    places = [None] * len(menus) if plane is None else plane.places(batch.hidden).tolist()
    return {
        index: _Sight(best=menu[top], at=None if place is None else _rounded(place))
        for index, menu, top, place in zip(batch.calls, menus, best, places, strict=True)
    }


def _notes(plane: ToolMap, names: Sequence[str]) -> MapNotes:
    places = {name: _rounded(at) for name, at in zip(names, plane.tools.tolist(), strict=True)}
    return MapNotes(kind=plane.kind, explained=min(plane.explained, 1.0), tools=places)


def _rounded(place: Sequence[float]) -> Place:
    return round(place[0], 4), round(place[1], 4)


def _finite(value: float) -> float | None:
    """Return the number; None for +inf, which JSON does not know."""
    return None if math.isinf(value) else float(value)


def _line(call: dict[str, Any]) -> str:
    return json.dumps(call, ensure_ascii=False, allow_nan=False)


def _first_fault(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole"
    return f"{where}: {first['msg']}"


def _unusable(path: Path, reason: str) -> ArtifactMismatch:
    return ArtifactMismatch(
        f"{path} cannot be used: {reason}",
        hint="calibrate again with `toolguard calibrate`, or delete the file to go without it",
        path=str(path),
    )
