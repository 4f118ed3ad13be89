"""Wall-clock times on a machine that others use too: interleaved pairs and their medians.

What is compared runs in turn, so that a slow spell of the machine hits both sides; each pair gives
a ratio of its own, and the order inside a pair alternates.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

Work = Callable[[int], object]
"""Does the work of one turn; gets the number of the turn, so that inputs can take turns too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median and quartiles of n values, all in the same unit."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Seconds of what is measured, and of what it is compared with, one right after the other."""

    measured_s: float
    baseline_s: float

    @property
    def ratio(self) -> float:
        """Measured over baseline."""
        return self.measured_s / self.baseline_s


def spread_of(values: Sequence[float]) -> Spread:
    """Return the median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(median=values[0], low=values[0], high=values[0], n=1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, low=low, high=high, n=len(values))


@contextmanager
def steady_clock() -> Iterator[None]:
    """Keep the garbage collector from running inside a time; `seconds` runs it between them."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()  # what lives now is never looked at again, which makes later collections short
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def seconds(work: Work, turn: int) -> float:
    """Return how long one turn of `work` takes; collects garbage first."""
    gc.collect()
    started = time.perf_counter()
    work(turn)
    return time.perf_counter() - started


def time_pairs(measured: Work, baseline: Work, *, pairs: int, warm_up: int = 2) -> list[Pair]:
    """Return the times of both, turn by turn; the first `warm_up` turns are not counted."""
    found: list[Pair] = []
    with steady_clock():
        for turn in range(warm_up + pairs):
            if turn % 2:
                baseline_s = seconds(baseline, turn)
                measured_s = seconds(measured, turn)
            else:
                measured_s = seconds(measured, turn)
                baseline_s = seconds(baseline, turn)
            found.append(Pair(measured_s=measured_s, baseline_s=baseline_s))
    return found[warm_up:]
