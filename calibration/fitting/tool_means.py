"""One mean for every tool: from its calls, or a stand-in from its name's unembedding row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolguard.calibration.fitting.statistics import ToolStatistics
from toolguard.calibration.labels.labelled_calls import LabelledCall, LayerPass
from toolguard.guard.errors import CalibrationError
from toolguard.guard.profile_meta import CovarianceTarget
from toolguard.guard.readout import Readout, ReadoutKind, build_readout, fallback_mean


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NameRows:
    """Unembedding rows of the tools' first distinguishing tokens.

    Args:
        rows: (tools, dim) float32.
        mean: (dim,) mean of all unembedding rows.
    """

    rows: Tensor
    mean: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ToolMeans:
    """Means of all tools of a profile.

    Args:
        means: (tools, dim) float64.
        centre: (dim,) float64 mean of all calls behind them.
        calibrated: (tools,) bool, false where the mean is a stand-in.
    """

    means: Tensor
    centre: Tensor
    calibrated: Tensor


def tool_means(statistics: ToolStatistics, names: NameRows, min_examples: int) -> ToolMeans:
    """Return every tool's mean; tools with fewer than `min_examples` calls get a stand-in.

    Raises:
        CalibrationError: if no tool has that many.
    """
    calibrated = statistics.counts >= min_examples
    if not bool(calibrated.any()):
        most = int(statistics.counts.max()) if len(statistics.counts) else 0
        raise CalibrationError(
            f"no tool has {min_examples} calls that the model got right; the most is {most}",
            hint="give more records, a model that calls tools better, or a lower --min-examples",
        )
    centre = statistics.global_mean()
    means = statistics.means.clone()
    anchors = statistics.means[calibrated]
    for tool in torch.nonzero(~calibrated)[:, 0].tolist():
        means[tool] = fallback_mean(names.rows[tool], names.mean, anchors, centre)
    return ToolMeans(means=means, centre=centre, calibrated=calibrated)


def right_call_statistics(
    calls: Sequence[LabelledCall],
    layer_pass: LayerPass,
    layer: int,
    shape: torch.Size,
    *,
    pooled: bool,
    wanted: frozenset[int],
) -> ToolStatistics:
    """Return statistics over the wanted calls that the model got right, each under its tool.

    Args:
        calls: all calls.
        layer_pass: gives their hidden states.
        layer: block index.
        shape: (tools, dim).
        pooled: whether to keep the scatter that a covariance needs.
        wanted: indices of the calls to use.
    """
    statistics = ToolStatistics(*shape, pooled=pooled)
    for batch in layer_pass(layer):
        own = batch.pick([i in wanted and not calls[i].wrong for i in batch.calls])
        statistics.update(own.hidden, torch.tensor([calls[i].tool for i in own.calls]).long())
    return statistics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BuiltReadout:
    """A readout with what it was built from; covariance (dim, dim) float64, None but for lda."""

    readout: Readout
    means: ToolMeans
    covariance: Tensor | None
    shrinkage: float | None


def readout_from(
    statistics: ToolStatistics,
    means: ToolMeans,
    kind: ReadoutKind,
    target: CovarianceTarget | None,
) -> BuiltReadout:
    """Return the readout of this kind from statistics and the means made of them.

    Raises:
        CalibrationError: if the statistics do not determine it.
    """
    shrunk = None if target is None else statistics.shrunk_covariance(target)
    covariance = None if shrunk is None else shrunk.matrix
    return BuiltReadout(
        readout=build_readout(kind, means.means, means.centre, covariance),
        means=means,
        covariance=covariance,
        shrinkage=None if shrunk is None else shrunk.shrinkage,
    )
