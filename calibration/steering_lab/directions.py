"""The vectors that are compared: which way to push a hidden state, and how far.

Each direction has a *natural* norm, what it comes out as, and some also a *matched* one: the norm
of the pair's mean difference, so that directions are compared at one length. Alpha multiplies
either.

Source: mean difference, its part along the unembedding row and the rest, and random control, Wu et
al., arXiv 2605.07990; steering by the unembedding row at matched norm, the same.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from toolguard.adapters.loading import LoadedModel
from toolguard.calibration.steering_lab.pairs import Contest
from toolguard.calibration.steering_lab.state_means import Opening, StateMeans

Direction = Literal[
    "mean_difference",  # the target's mean minus the source's
    "normalised_mean_difference",  # the same way, equally far for every pair: the mean separation
    "unembedding_row",  # the target's next token's row minus the source's
    "gained_row",  # the same, times the gain of the final norm
    "target_row",  # the target's row alone
    "parallel",  # the mean difference's part along `unembedding_row`
    "orthogonal",  # what that leaves of it
    "gained_parallel",  # its part along `gained_row`
    "gained_orthogonal",  # what that leaves of it
    "random",  # Gaussian
    "shuffled_means",  # the mean difference after the tools have changed places
]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
Norm = Literal["natural", "matched"]

_ONE_NORM: dict[Direction, Norm] = {
    "mean_difference": "natural",  # the length that others are matched to
    "normalised_mean_difference": "natural",
    "random": "matched",  # a Gaussian has no length of its own
}


def norms_of(direction: Direction) -> tuple[Norm, ...]:
    """Return the norms at which a direction is something of its own."""
    return (_ONE_NORM[direction],) if direction in _ONE_NORM else ("natural", "matched")


class Directions:
    """The directions from rivals to a target, for one model and one set of means.

    Args:
        loaded: the model.
        means: hidden states to go from and to.
        seed: of the random vectors and of the shuffle.
    """

    def __init__(self, loaded: LoadedModel, means: StateMeans, *, seed: int) -> None:
        self.means = means
        self._unembedding = loaded.view.unembedding
        self._gain = norm_gain(loaded.view.final_norm, loaded.view.unembedding)
        self._seed = seed
        self._stand_ins = _shuffled(means.tools, seed)
        self._separations: dict[tuple[Opening, int], float] = {}
        self._natural: dict[Direction, Callable[[Contest, int], Tensor | None]] = {
            "mean_difference": self._difference,
            "normalised_mean_difference": self._equal_push,
            "unembedding_row": lambda contest, _layer: self._row(contest),
            "gained_row": lambda contest, _layer: self._gained(contest),
            "target_row": lambda contest, _layer: self._target(contest),
            "parallel": lambda *at: _along(self._difference(*at), self._row(at[0])),
            "orthogonal": lambda *at: _across(self._difference(*at), self._row(at[0])),
            "gained_parallel": lambda *at: _along(self._difference(*at), self._gained(at[0])),
            "gained_orthogonal": lambda *at: _across(self._difference(*at), self._gained(at[0])),
            "random": lambda contest, _layer: self._noise(contest),
            "shuffled_means": self._shuffle,
        }

    def vector(
        self, contest: Contest, layer: int, direction: Direction, norm: Norm
    ) -> Tensor | None:
        """Return (dim,) float32 on the CPU, or None if a mean that it needs is missing.

        A direction without a length (the rows of one and the same token) is zero at any norm.

        Args:
            contest: from which tools to which, and where.
            layer: block index.
            direction: which way.
            norm: how far.
        """
        natural = self._natural[direction](contest, layer)
        if natural is None or norm == "natural":
            return natural
        like = self._difference(contest, layer)
        if like is None:  # where names part late there may be none: that at the decision will do
            like = self.means.difference((), contest.rivals, contest.target, layer)
        return None if like is None else _at_norm(natural, float(torch.linalg.vector_norm(like)))

    def _difference(self, contest: Contest, layer: int) -> Tensor | None:
        return self.means.difference(contest.opening, contest.rivals, contest.target, layer)

    def _equal_push(self, contest: Contest, layer: int) -> Tensor | None:
        difference = self._difference(contest, layer)
        if difference is None:
            return None
        key = (contest.opening, layer)
        if key not in self._separations:
            self._separations[key] = self.means.separation(*key)
        return _at_norm(difference, self._separations[key])

    def _target(self, contest: Contest) -> Tensor:
        row: Tensor = self._unembedding[contest.token].detach().to("cpu", torch.float32)
        return row

    def _row(self, contest: Contest) -> Tensor:
        rivals = self._unembedding[sorted(set(contest.tokens))].detach().to("cpu", torch.float32)
        return self._target(contest) - rivals.mean(dim=0)

    def _gained(self, contest: Contest) -> Tensor:
        return self._row(contest) * self._gain

    def _noise(self, contest: Contest) -> Tensor:
        place = 1_000 * contest.number + len(contest.opening)
        draw = torch.Generator().manual_seed(1_000_000_007 * self._seed + place)
        return torch.randn(self._unembedding.shape[1], generator=draw)

    def _shuffle(self, contest: Contest, layer: int) -> Tensor | None:
        target = self._stand_ins.get(contest.target)
        rivals = [self._stand_ins[name] for name in contest.rivals if name in self._stand_ins]
        # The stand-ins have other names, which need not begin alike: their decision token it is.
        return None if target is None else self.means.difference((), rivals, target, layer)


def norm_gain(norm: nn.Module, like: Tensor) -> Tensor:
    """Return (dim,) float32: by what a norm multiplies each component after normalising.

    Measured, not looked up: families keep it as g, 1 + g or with a bias. A vector of ones and minus
    ones, half of each, is what both RMSNorm and LayerNorm leave as it is up to the gain. That
    LayerNorm also takes the mean off is left aside.

    Args:
        norm: the final norm of a model.
        like: (rows, dim); of the norm's width and dtype.
    """
    place = next(norm.parameters(), like)  # a model may be spread over devices
    signs = torch.ones(like.shape[1], device=place.device, dtype=like.dtype)
    signs[1::2] = -1
    with torch.inference_mode():
        above, below = norm(signs[None, None]), norm(-signs[None, None])
    gain: Tensor = ((above - below)[0, 0] / 2 * signs).to("cpu", torch.float32).clone()
    return gain


def _shuffled(tools: tuple[str, ...], seed: int) -> dict[str, str]:
    """Return another tool for each tool, no tool for two; nothing for fewer than three tools."""
    if len(tools) < 3:
        return {}
    order = sorted(tools)
    Random(seed).shuffle(order)
    return dict(zip(order, [*order[1:], order[0]], strict=True))


def _along(vector: Tensor | None, row: Tensor) -> Tensor | None:
    """Return the part of `vector` along `row`; zero along a row without a direction."""
    if vector is None:
        return None
    return row * (vector @ row) / (row @ row).clamp_min(1e-12)


def _across(vector: Tensor | None, row: Tensor) -> Tensor | None:
    part = _along(vector, row)
    return None if vector is None or part is None else vector - part


def _at_norm(vector: Tensor, length: float) -> Tensor:
    """Return the vector at this length; zero stays zero."""
    scaled: Tensor = vector / torch.linalg.vector_norm(vector).clamp_min(1e-12) * length
    return scaled
