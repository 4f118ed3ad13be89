"""The logit lens at the decision token: what each block's state would choose if it were the last.

Source: nostalgebraist (2020), "interpreting GPT: the logit lens"; as evidence on tool calls,
Subramani et al. (2025), "MICE for CATs", arXiv 2504.20168.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolguard.adapters.blocks import ModelView
from toolguard.calibration.labels.labelled_calls import Booleans
from toolguard.calibration.measuring.metrics import auroc
from toolguard.calibration.reading.name_walk import FirstBranch
from toolguard.guard.errors import ShapeError
from toolguard.guard.rate import wilson
from toolguard.guard.readout import margins


@torch.no_grad()
def lens_margins(view: ModelView, hidden: Tensor, branch: FirstBranch | None) -> Tensor | None:
    """Return how far each block prefers the chosen name's token over the best other name's.

    Args:
        view: where final norm and unembedding are.
        hidden: (blocks, dim) every block's output at the decision token.
        branch: where the menu's names part.

    Returns: (blocks,) float32 differences of logits, in nats, on the CPU; the last one is the
        first-token log-prob margin. None if names part later than at the decision token, or there
        is one name.

    Raises:
        ShapeError: if `hidden` does not hold all blocks.
    """
    if hidden.shape != (len(view.blocks), view.hidden_size):
        raise ShapeError(
            f"expected hidden {(len(view.blocks), view.hidden_size)}, found {tuple(hidden.shape)}"
        )
    if branch is None or not branch.at_decision:
        return None
    rows = view.unembedding[branch.token_ids.to(view.unembedding.device)]  # (children, dim)
    normed = view.final_norm(hidden.to(rows.device, rows.dtype))
    logits = (normed @ rows.T).to("cpu", torch.float32)  # (blocks, children)
    return margins(logits, torch.full((len(logits),), branch.chosen))


def lens_by_block(lenses: Sequence[Tensor | None], wrong: Booleans) -> list[dict[str, Any]]:
    """Return, for each block, how often its lens agrees with the choice, and what that tells.

    Args:
        lenses: margins of each call; those without are left out.
        wrong: (calls,) outcomes.
    """
    read = [place for place, lens in enumerate(lenses) if lens is not None]
    if not read:
        return []
    table = torch.stack([lens for lens in lenses if lens is not None]).double().numpy()
    outcome = wrong[read]
    return [
        {
            "block": block,
            "agrees_when_right": _share(values[~outcome] > 0),
            "agrees_when_wrong": _share(values[outcome] > 0),
            "auroc": auroc(-values, outcome).to_dict(),
        }
        for block, values in enumerate(table.T)
    ]


def _share(flags: Booleans) -> dict[str, Any]:
    return wilson(int(np.count_nonzero(flags)), len(flags)).to_dict()
