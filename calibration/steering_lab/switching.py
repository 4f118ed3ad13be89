"""How often a setting switches the tool: names alone, over a whole grid of settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from toolguard.calibration.steering_lab.directions import Directions
from toolguard.calibration.steering_lab.pairs import Pair
from toolguard.calibration.steering_lab.settings import Setting, try_settings
from toolguard.calibration.steering_lab.trials import TrialBench, Written
from toolguard.guard.rate import wilson

Switch = Literal["target", "source", "other_tool", "no_name"]
"""What is called in the end; `no_name`: what was written is no name of the menu."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SwitchCell:
    """What one setting does to some pairs.

    Args:
        setting: what was done.
        found: how often which tool was called.
        won: how often the target was chosen at each place where names part, be its name written to
            the end or not.
        without_means: pairs that could not be tried, for want of a mean.
    """

    setting: Setting
    found: Counter[Switch]
    won: int
    without_means: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, the rate with its 95 % interval."""
        n = self.found.total()
        return {
            **self.setting.to_dict(),
            "n": n,
            "switched": wilson(self.found["target"], n).to_dict(),
            "won": wilson(self.won, n).to_dict(),
            "stayed": self.found["source"],
            "other_tool": self.found["other_tool"],
            "no_name": self.found["no_name"],
            "without_means": self.without_means,
        }


def measure_switching(
    bench: TrialBench,
    directions: Directions,
    pairs: Sequence[Pair],
    settings: Sequence[Setting],
    *,
    on_done: Callable[[int], object] | None = None,
) -> list[SwitchCell]:
    """Return one cell a setting, over all pairs.

    Args:
        bench: runs the model.
        directions: where to push.
        pairs: those whose prompts begin alike stand together.
        settings: what is done to each of them.
        on_done: told of each pair that is through.
    """
    found: list[Counter[Switch]] = [Counter() for _ in settings]
    won = [0 for _ in settings]
    missing = [0 for _ in settings]
    for pair, told in try_settings(bench, directions, pairs, settings, "name"):
        for place, written in enumerate(told):
            if written is None:
                missing[place] += 1
            else:
                found[place][switch_of(pair, written)] += 1
                won[place] += written.singled_out == pair.target
        if on_done is not None:
            on_done(1)
    return [
        SwitchCell(
            setting=setting, found=found[place], won=won[place], without_means=missing[place]
        )
        for place, setting in enumerate(settings)
    ]


def switch_of(pair: Pair, written: Written) -> Switch:
    """Return what a pair's trial called."""
    if written.name is None:
        return "no_name"
    if written.name == pair.target:
        return "target"
    return "source" if written.name == pair.source else "other_tool"
