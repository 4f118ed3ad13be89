"""Microseconds of one readout: the scores of every tool on a menu from one hidden state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from figures import Figure
from timing import seconds, spread_of, steady_clock
from torch import Tensor

from toolguard.guard.readout import build_readout

WIDTH = 4096
TOOLS = (10, 100, 1000)
_STATES = 32


def measure(*, batches: int, reads: int) -> list[Figure]:
    """Return one figure a menu size, from `batches` batches of `reads` readouts each."""
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(_STATES, WIDTH, generator=draw)
    readers = {tools: _reader(tools, states, reads) for tools in TOOLS}
    times: dict[int, list[float]] = {tools: [] for tools in TOOLS}
    with steady_clock(), torch.no_grad():
        for batch in range(batches + 1):
            for tools, read in readers.items():
                times[tools].append(seconds(read, batch) / reads * 1e6)
    return [
        Figure(
            name=f"readout_us_{tools}_tools",
            spread=spread_of(times[tools][1:]),  # the first batch warms up
            unit="us",
            note=f"centred cosine, width {WIDTH}, float32, the check for NaN included",
        )
        for tools in TOOLS
    ]


def _reader(tools: int, states: Tensor, reads: int) -> Callable[[int], None]:
    draw = torch.Generator().manual_seed(tools)
    means = torch.randn(tools, WIDTH, generator=draw, dtype=torch.float64)
    readout = build_readout("centred_cosine", means, means.mean(0))

    def read(_turn: int) -> None:
        for number in range(reads):
            readout.scores(states[number % _STATES])

    return read
