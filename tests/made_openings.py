"""Openings with made-up states, for everything about call or answer that needs no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from toolguard.calibration.answering.labels import NextStep
from toolguard.calibration.answering.openings import Opening

DIM = 6
WORDS = "rain sun Rome Paris alarm taxi mail news flight hotel seven today song book lamp"


def made_openings(
    n: int = 300,
    *,
    steps: Sequence[NextStep] = ("call", "answer", "ask"),
    apart: float = 4.0,
    odds: float = 0.0,
    layers: int = 2,
    best: int = 1,
    source: str = "made",
    name: str = "o",
    seed: int = 0,
) -> list[Opening]:
    """Return openings, the steps in turn, whose states tell them apart at one layer.

    Args:
        n: how many.
        steps: of which.
        apart: distance of the steps' means, in standard deviations.
        odds: how much larger the odds of a call are where one is right.
        layers: rows of each state.
        best: the row that tells.
        source: of all of them.
        name: begins every id.
        seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    means = {step: apart * np.eye(DIM)[place] for place, step in enumerate(steps)}
    found = []
    for index in range(n):
        step = steps[index % len(steps)]
        hidden = rng.normal(size=(layers, DIM))
        hidden[best] += means[step]
        log_odds = float(rng.normal() + (odds if step == "call" else 0.0))
        tool = f"tool_{rng.integers(3)}" if step == "call" else ""
        found.append(
            Opening(
                record_id=f"{name}{index}",
                source=source,
                query=" ".join([*rng.choice(WORDS.split(), 8), f"{name}{index}"]),
                step=step,
                tool=tool,
                menu_size=5,
                prompt_tokens=int(rng.integers(40, 60)),
                log_odds=log_odds,
                starts=log_odds > -1.0,
                hidden=torch.tensor(hidden, dtype=torch.float32),
                decision=torch.tensor(rng.normal(size=(layers, DIM)), dtype=torch.float32),
            )
        )
    return found
