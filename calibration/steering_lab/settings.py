"""What is done to a pair: which direction, at which layer, how strong and where; or no push at all.

A setting put to a pair is a `Trial`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, get_args

from toolguard.calibration.steering_lab.changes import Change, LogitBias, Push
from toolguard.calibration.steering_lab.directions import (
    DIRECTIONS,
    Direction,
    Directions,
    Norm,
    norms_of,
)
from toolguard.calibration.steering_lab.pairs import Contest, Pair
from toolguard.calibration.steering_lab.trials import TOGETHER, Trial, TrialBench, Until, Written
from toolguard.guard.errors import ConfigError

Control = Literal[
    "none",  # nothing is changed
    "logit_bias",  # the target's next token is made more likely
    "redirect",  # the target's name is written for the model
]
CONTROLS: tuple[Control, ...] = get_args(Control)
Method = Direction | Control
METHODS: tuple[Method, ...] = (*CONTROLS, *DIRECTIONS)
Place = Literal["decision", "partings"]
"""Where a change acts: at the decision token, against the source; or at each token after which the
target's name parts, first from the source's, then from those of third tools."""

BIAS = 10.0
"""What alpha 1 adds to a logit: odds of e^10, about 22,000 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way of steering.

    Args:
        method: what is changed.
        norm: length of a direction; None for the controls.
        layer: block whose output is pushed; None for the controls.
        alpha: strength; None where there is none.
        place: where it acts.
    """

    method: Method
    norm: Norm | None = None
    layer: int | None = None
    alpha: float | None = None
    place: Place = "decision"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "method": self.method,
            "norm": self.norm,
            "place": self.place,
            "layer": self.layer,
            "alpha": self.alpha,
        }


def checked_methods(names: Sequence[str]) -> tuple[Method, ...]:
    """Return the methods of these names, in the order of `METHODS`; all if there are none.

    Raises:
        ConfigError: if there is no method of a name.
    """
    if unknown := sorted(set(names) - set(METHODS)):
        raise ConfigError(
            f"unknown steering method: {', '.join(unknown)}",
            hint=f"choose from: {', '.join(METHODS)}",
            found=tuple(unknown),
        )
    return tuple(method for method in METHODS if not names or method in names)


def grid(
    methods: Sequence[Method],
    layers: Sequence[int],
    alphas: Sequence[float],
    place: Place = "decision",
) -> tuple[Setting, ...]:
    """Return every combination that is something of its own."""
    return tuple(
        setting for method in methods for setting in _of_method(method, layers, alphas, place)
    )


def _of_method(
    method: Method, layers: Sequence[int], alphas: Sequence[float], place: Place
) -> Iterator[Setting]:
    match method:
        case "none" | "redirect":
            if place == "decision":  # wherever, it is the same
                yield Setting(method=method)
        case "logit_bias":
            yield from (Setting(method=method, alpha=alpha, place=place) for alpha in alphas)
        case _:
            yield from (
                Setting(method=method, norm=norm, layer=layer, alpha=alpha, place=place)
                for norm in norms_of(method)
                for layer in layers
                for alpha in alphas
            )


def trial_of(setting: Setting, pair: Pair, directions: Directions) -> Trial | None:
    """Return the setting put to a pair, or None if a mean that it needs is missing."""
    match setting.method:
        case "none":
            return Trial(prompt=pair.prompt, wanted=pair.source)
        case "redirect":
            return Trial(prompt=pair.prompt, opening=pair.prompt.trie.path_of(pair.target))
    contests = pair.contests() if setting.place == "partings" else (pair.at_decision(),)
    changes = {contest.opening: _change(setting, contest, directions) for contest in contests}
    opening = contests[0].opening
    if changes[opening] is None:
        return None
    # A later contest without a mean is left to the model.
    known = {place: change for place, change in changes.items() if change is not None}
    return Trial(prompt=pair.prompt, opening=opening, changes=known, wanted=pair.target)


def _change(setting: Setting, contest: Contest, directions: Directions) -> Change | None:
    """Return what the setting changes at one place, or None if a mean that it needs is missing."""
    alpha = 1.0 if setting.alpha is None else setting.alpha
    match setting.method:
        case "none" | "redirect":
            return None
        case "logit_bias":
            return LogitBias(token=contest.token, value=BIAS * alpha)
    if setting.layer is None or setting.norm is None:
        raise ConfigError(f"{setting.method} needs a layer and a norm", method=setting.method)
    vector = directions.vector(contest, setting.layer, setting.method, setting.norm)
    return None if vector is None else Push(layer=setting.layer, vector=alpha * vector)


def try_settings(
    bench: TrialBench,
    directions: Directions,
    pairs: Sequence[Pair],
    settings: Sequence[Setting],
    until: Until,
) -> Iterator[tuple[Pair, list[Written | None]]]:
    """Yield each pair with what it writes under each setting; None where a mean is missing.

    Args:
        bench: runs the model.
        directions: where to push.
        pairs: those whose prompts begin alike stand together.
        settings: what is done to each of them.
        until: how far they write.
    """
    at_once = max(1, TOGETHER[until] // max(1, len(settings)))  # their vectors take memory
    for _, group in groupby(pairs, key=lambda pair: id(pair.shared)):
        alike = list(group)
        for start in range(0, len(alike), at_once):
            some = alike[start : start + at_once]
            table = [[trial_of(setting, pair, directions) for setting in settings] for pair in some]
            trials = [trial for row in table for trial in row if trial is not None]
            told = iter(bench.run(some[0].shared, trials, until))
            for pair, row in zip(some, table, strict=True):
                yield pair, [None if trial is None else next(told) for trial in row]
