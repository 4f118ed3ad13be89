"""Scores of every tool from one hidden state as one affine map, and margins of scores."""

from __future__ import annotations

import ctypes
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from toolguard.guard.errors import CalibrationError, ConfigError, ReadoutError, ShapeError

ReadoutKind = Literal["cosine", "centred_cosine", "lda"]
READOUT_KINDS: tuple[ReadoutKind, ...] = get_args(ReadoutKind)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readout:
    """`weights @ f(hidden) + bias`; f subtracts the centre and, if asked, scales to length 1.

    Args:
        kind: how the weights were made; the scores are comparable only within one kind.
        weights: (tools, dim) float32.
        bias: (tools,) float32.
        centre: (dim,) float32 subtracted from the hidden state, or None.
        normalise: whether the (centred) hidden state is scaled to unit length.

    Raises:
        ShapeError: if the parts do not fit each other.
    """

    kind: ReadoutKind
    weights: Tensor
    bias: Tensor
    centre: Tensor | None
    normalise: bool

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or self.bias.shape != self.weights.shape[:1]:
            raise ShapeError(
                f"weights {tuple(self.weights.shape)} and bias {tuple(self.bias.shape)} do not fit"
            )
        if self.centre is not None and self.centre.shape != self.weights.shape[1:]:
            raise ShapeError(
                f"centre {self.centre.shape} does not fit weights {self.weights.shape}"
            )

    @property
    def tools(self) -> int:
        """Number of tools scored."""
        return self.weights.shape[0]

    def for_menu(self, indices: Sequence[int] | Tensor) -> Readout:
        """Return a contiguous readout of these tools alone, in this order.

        Raises:
            ShapeError: if `indices` is empty or one lies outside the tools axis.
        """
        rows = torch.as_tensor(indices, dtype=torch.int64, device=self.weights.device)
        self._check_rows(rows)
        return replace(
            self, weights=self.weights[rows].contiguous(), bias=self.bias[rows].contiguous()
        )

    def to(self, device: torch.device | str) -> Readout:
        """Return the same readout with its tensors on `device`."""
        centre = None if self.centre is None else self.centre.to(device)
        return replace(
            self, weights=self.weights.to(device), bias=self.bias.to(device), centre=centre
        )

    def scores(self, hidden: Tensor, index: Tensor | None = None) -> Tensor:
        """Return every tool's score.

        Args:
            hidden: (dim,) or (rows, dim), any float dtype and device.
            index: int64 rows of the tools to score, or None for all; `for_menu` is faster for
                repeated use.

        Returns: (tools,) or (rows, tools) float32 on the readout's device: cosines in [-1, 1], or
            for `lda` half the drop in squared Mahalanobis distance against the centre (natural log
            units).

        Raises:
            ShapeError: if `hidden` has another width, or `index` lies outside the tools axis.
            ReadoutError: if a score is NaN or infinite (NaN, infinite, or zero-length hidden
                state).
        """
        if hidden.ndim not in (1, 2) or hidden.shape[-1] != self.weights.shape[1]:
            raise ShapeError(
                f"expected hidden (..., {self.weights.shape[1]}), found {tuple(hidden.shape)}"
            )
        weights, bias = self.weights, self.bias
        if index is not None:
            rows = index.to(weights.device)
            self._check_rows(rows)
            weights, bias = weights[rows], bias[rows]
        state = hidden.to(weights.device, torch.float32)
        if self.centre is not None:
            state = state - self.centre
        scores = torch.nn.functional.linear(state, weights)
        if self.normalise:
            # Scaling the few scores instead of the wide state saves a pass over it.
            scores = scores / torch.linalg.vector_norm(state, dim=-1, keepdim=True)
        scores = scores + bias
        if not bool(torch.isfinite(scores).all()):
            raise ReadoutError("the hidden state gives scores that are not finite", kind=self.kind)
        return scores

    def _check_rows(self, rows: Tensor) -> None:
        if rows.ndim != 1 or not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= self.tools:
            raise ShapeError(
                f"tool indices must be a list within [0, {self.tools}), found {rows.tolist()}"
            )


def build_readout(
    kind: ReadoutKind, means: Tensor, centre: Tensor | None = None, covariance: Tensor | None = None
) -> Readout:
    """Return the readout of this kind from per-tool means.

    `cosine`: h.mu / (|h| |mu|). `centred_cosine`: the same after subtracting the centre from both.
    `lda`: the linear discriminant with equal priors, (mu - c)' S^-1 (h - c) - (mu - c)' S^-1 (mu -
    c) / 2.

    Args:
        kind: one of `READOUT_KINDS`.
        means: (tools, dim) float64.
        centre: (dim,) float64; needed by `centred_cosine` and `lda`, ignored by `cosine`.
        covariance: (dim, dim) float64 within-class, positive definite; needed by `lda`, ignored by
            the others.

    Raises:
        ConfigError: for an unknown kind.
        ShapeError: if the parts do not fit each other.
        CalibrationError: if something needed is missing, not finite, of zero length, or not
            positive definite.

    Source: cosine, arXiv 2605.07990; discriminant, Hastie, Tibshirani & Friedman (2009), eq. 4.10
        with equal priors.
    """
    if kind not in READOUT_KINDS:
        raise ConfigError(
            f"unknown readout {kind!r}", hint=f"use one of {', '.join(READOUT_KINDS)}"
        )
    if means.ndim != 2 or not len(means):
        raise ShapeError(f"expected means (tools, dim), found {tuple(means.shape)}")
    used_centre = (
        None if kind == "cosine" else _needed(centre, means.shape[1:], f"{kind} needs a centre")
    )
    offsets = means.to(torch.float64)
    if used_centre is not None:
        offsets = offsets - used_centre
    if not bool(torch.isfinite(offsets).all()):
        raise CalibrationError("the tool means or their centre are not finite")
    if kind == "lda":
        dim = means.shape[1]
        weights = _whitened(
            offsets, _needed(covariance, torch.Size((dim, dim)), "lda needs a covariance")
        )
        bias = -0.5 * (weights * offsets).sum(dim=1)
    else:
        weights, bias = _unit_rows(offsets), offsets.new_zeros(len(offsets))
    return Readout(
        kind=kind,
        weights=weights.to(torch.float32).contiguous(),
        bias=bias.to(torch.float32),
        centre=None if used_centre is None else used_centre.to(torch.float32),
        normalise=kind != "lda",
    )


def _needed(value: Tensor | None, shape: torch.Size, message: str) -> Tensor:
    if value is None:
        raise CalibrationError(message)
    if value.shape != shape:
        raise ShapeError(f"{message} of shape {tuple(shape)}, found {tuple(value.shape)}")
    return value.to(torch.float64)


def _unit_rows(offsets: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(offsets, dim=1, keepdim=True)
    if bool((norms == 0).any()):
        raise CalibrationError(
            "a tool mean has zero length, so it has no direction", tool=int(norms.argmin())
        )
    return offsets / norms


def _whitened(offsets: Tensor, covariance: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info) != 0 or not bool(torch.isfinite(factor).all()):
        raise CalibrationError(
            "the covariance is not positive definite", hint="shrink it, or read more examples"
        )
    return torch.cholesky_solve(offsets.T, factor).mT


def fallback_mean(row: Tensor, rows_mean: Tensor, means: Tensor, centre: Tensor) -> Tensor:
    """Return a stand-in mean for a tool without examples, from its name token's unembedding row.

    Args:
        row: (dim,) unembedding row of the tool's first distinguishing token.
        rows_mean: (dim,) mean of the unembedding rows, so that what all tokens share drops out.
        means: (tools, dim) means of the calibrated tools; their median distance from the centre is
            the length used.
        centre: (dim,) centre of the calibrated means.

    Returns:
        (dim,) float64.

    Raises:
        ShapeError: if the widths differ.
        CalibrationError: if there is no calibrated mean, or the direction is zero or not finite.

    Source: DESIGN section 6; arXiv 2605.07990 reports that the unembedding row carries the tool
        direction.
    """
    if means.ndim != 2 or not row.shape == rows_mean.shape == centre.shape == means.shape[1:]:
        raise ShapeError(
            f"row {row.shape}, rows_mean {rows_mean.shape}, centre {centre.shape}, "
            f"means {means.shape} do not fit"
        )
    if not len(means):
        raise CalibrationError("a fallback mean needs at least one calibrated tool")
    base = centre.to(torch.float64)
    direction = row.to(torch.float64) - rows_mean.to(torch.float64)
    length = torch.linalg.vector_norm(means.to(torch.float64) - base, dim=1).quantile(0.5)
    norm = torch.linalg.vector_norm(direction)
    if not bool(torch.isfinite(norm) & torch.isfinite(length)) or float(norm) == 0.0:
        raise CalibrationError("the unembedding row has no usable direction")
    mean: Tensor = base + direction / norm * length
    return mean


def margins(scores: Tensor, chosen: Tensor) -> Tensor:
    """Return each row's margin: the chosen tool's score minus the best other score.

    Args:
        scores: (rows, tools) any float dtype.
        chosen: (rows,) int64 indices on the tools axis.

    Returns: (rows,) same dtype; negative if a rival scores higher; +inf if the menu has one tool,
        for then nothing competes with it.

    Raises:
        ShapeError: if the shapes do not fit or an index lies outside the tools axis.
        ReadoutError: if a score is NaN.
    """
    _check_scores(scores)
    if chosen.shape != scores.shape[:1] or bool(((chosen < 0) | (chosen >= scores.shape[1])).any()):
        raise ShapeError(
            f"chosen {tuple(chosen.shape)} does not index scores {tuple(scores.shape)}"
        )
    column = chosen.to(scores.device)[:, None]
    others = scores.scatter(1, column, -torch.inf)
    return scores.gather(1, column)[:, 0] - others.amax(dim=1)


def top_gaps(scores: Tensor) -> Tensor:
    """Return each row's best score minus its second best; +inf for a menu of one tool.

    Args:
        scores: (rows, tools) any float dtype.

    Raises:
        ShapeError: if `scores` is not (rows, tools).
        ReadoutError: if a score is NaN.
    """
    _check_scores(scores)
    if scores.shape[1] == 1:
        return torch.full_like(scores[:, 0], torch.inf)
    best = scores.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def margin(scores: Tensor, chosen: int) -> float:
    """Return `margins` for one row of scores (tools,), bit for bit; +inf for a menu of one tool."""
    values = _numbers(scores)
    if values is None or not 0 <= chosen < len(values):
        return float(margins(scores[None], torch.tensor([chosen]))[0])
    rivals = values[:chosen] + values[chosen + 1 :]
    return _single(values[chosen] - max(rivals, default=-math.inf))


def top_gap(scores: Tensor) -> float:
    """Return `top_gaps` for one row of scores (tools,), bit for bit; +inf if there is one tool."""
    values = _numbers(scores)
    if values is None:
        return float(top_gaps(scores[None])[0])
    if len(values) == 1:
        return math.inf
    best, second = heapq.nlargest(2, values)
    return _single(best - second)


def _numbers(scores: Tensor) -> list[float] | None:
    """Return one row of float32 scores as numbers, or None for what the batch functions refuse.

    Inside decoding, a dozen tensor operations on ten scores cost more than the readout itself.
    """
    if scores.ndim != 1 or scores.dtype != torch.float32 or not len(scores):
        return None
    values: list[float] = scores.tolist()
    return None if any(map(math.isnan, values)) else values


def _single(value: float) -> float:
    """Round to float32: after a difference of two float32 in float64, what float32 itself gives."""
    return ctypes.c_float(value).value


def _check_scores(scores: Tensor) -> None:
    if scores.ndim != 2 or not scores.shape[1]:
        raise ShapeError(f"expected scores (rows, tools), found {tuple(scores.shape)}")
    if bool(torch.isnan(scores).any()):
        raise ReadoutError("a score is NaN")
