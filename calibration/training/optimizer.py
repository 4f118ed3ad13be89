"""The optimiser of a training run: Muon inside the blocks, AdamW for everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

OPTIMIZER = "Muon for the matrices of the blocks and AdamW for the rest"
_MOMENTUM, _BETAS = 0.95, (0.9, 0.95)


class BlockOptimizer:
    """Muon for the matrices inside the blocks; AdamW for embeddings and vectors.

    One learning rate serves both: Muon's steps are scaled to the size that AdamW's have.

    Source: Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks"; the
        scaling: Liu et al. (2025), "Muon is scalable for LLM training", arXiv 2502.16982.

    Args:
        model: a decoder whose blocks are `model.model.layers`.
        rate: learning rate.
        decay: weight decay of all matrices.
    """

    def __init__(self, model: nn.Module, *, rate: float, decay: float) -> None:
        layers: Any = model.get_submodule("model.layers")
        inner = [p for p in layers.parameters() if p.ndim == 2]
        taken = {id(p) for p in inner}
        outer = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in taken]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        self._parts: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon(
                inner,
                lr=rate,
                weight_decay=decay,
                momentum=_MOMENTUM,
                adjust_lr_fn="match_rms_adamw",
            ),
            "adamw": torch.optim.AdamW(
                [
                    {"params": outer, "weight_decay": decay},
                    {"params": vectors, "weight_decay": 0.0},
                ],
                lr=rate,
                betas=_BETAS,
            ),
        }

    def set_rate(self, rate: float) -> None:
        """Give all parameters this learning rate."""
        for part in self._parts.values():
            for group in part.param_groups:
                group["lr"] = rate

    def step(self) -> None:
        """Move the parameters along their gradients, and forget these."""
        for part in self._parts.values():
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of an earlier run."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
