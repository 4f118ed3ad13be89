"""Streaming statistics of hidden states: tool means and a pooled covariance, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from toolguard.guard.errors import CalibrationError, ShapeError

ShrinkageTarget = Literal["identity", "diagonal"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShrunkCovariance:
    """A positive-definite covariance estimate.

    Args:
        matrix: (dim, dim) float64.
        shrinkage: weight of the target in (0, 1].
    """

    matrix: Tensor
    shrinkage: float


class ToolStatistics:
    """Counts, means and pooled scatter of the hidden states seen so far, in constant memory.

    A tool's mean depends on that tool's rows alone: updating one tool leaves the other means
    bit-identical.

    Args:
        tools: number of tools, on the tools axis of every result.
        dim: width of the hidden state.
        pooled: whether to keep the (dim, dim) scatter that `lda` needs (128 MiB at width 4,096).

    Source: Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", pairwise
        update.
    """

    __slots__ = ("counts", "freedom", "means", "scatter")

    def __init__(self, tools: int, dim: int, *, pooled: bool = True) -> None:
        self.counts: Tensor = torch.zeros(tools, dtype=torch.int64)
        self.means: Tensor = torch.zeros(tools, dim, dtype=torch.float64)
        self.scatter: Tensor | None = torch.zeros(dim, dim, dtype=torch.float64) if pooled else None
        self.freedom: int = 0

    def update(self, hidden: Tensor, tool_indices: Tensor) -> None:
        """Add rows.

        Args:
            hidden: (rows, dim) any float dtype and device.
            tool_indices: (rows,) int64, the tool of each row.

        Raises:
            ShapeError: if the shapes do not fit, or an index lies outside the tools axis.
            CalibrationError: if a value is NaN or infinite; nothing is added then.
        """
        rows, index = self._checked(hidden, tool_indices)
        if not len(rows):
            return
        present, local, counts = torch.unique(index, return_inverse=True, return_counts=True)
        sums = rows.new_zeros(len(present), rows.shape[1]).index_add_(0, local, rows)
        means = sums / counts[:, None]
        residuals = rows - means[local]  # (rows, dim)
        # The second term corrects the rounding left in the means (two-pass algorithm).
        means += rows.new_zeros(means.shape).index_add_(0, local, residuals) / counts[:, None]
        residuals = rows - means[local]
        scatter = None if self.scatter is None else residuals.T @ residuals
        self._absorb(present, counts, means, scatter, freedom=len(rows) - len(present))

    def merge(self, other: ToolStatistics) -> ToolStatistics:
        """Return the statistics of both inputs' rows together; neither input changes.

        Raises:
            ShapeError: if the two do not have the same tools, width and `pooled`.
        """
        if self.means.shape != other.means.shape or (self.scatter is None) != (
            other.scatter is None
        ):
            raise ShapeError(
                f"cannot merge statistics {tuple(self.means.shape)} and {tuple(other.means.shape)}"
            )
        merged = self.copy()
        present = torch.nonzero(other.counts)[:, 0]
        merged._absorb(  # noqa: SLF001 - a copy of ourselves
            present,
            other.counts[present],
            other.means[present],
            other.scatter,
            freedom=other.freedom,
        )
        return merged

    def _absorb(
        self, tools: Tensor, counts: Tensor, means: Tensor, scatter: Tensor | None, *, freedom: int
    ) -> None:
        """Combine with rows that have these counts, means, scatter and degrees of freedom."""
        before = self.counts[tools]
        total = before + counts
        delta = means - self.means[tools]
        if self.scatter is not None and scatter is not None:
            weight = (before * counts).to(torch.float64) / total  # 0 for a tool not seen before
            self.scatter += scatter + delta.T @ (delta * weight[:, None])
        shifted = self.means[tools] + delta * (counts.to(torch.float64) / total)[:, None]
        # A first mean is copied, not computed from zero, so that it is exact.
        self.means[tools] = torch.where(before[:, None] == 0, means, shifted)
        self.counts[tools] = total
        self.freedom += freedom + int((before > 0).sum())

    def replace_tool(self, tool: int, hidden: Tensor) -> None:
        """Replace one tool's mean and count; everything else stays bit-identical.

        The pooled scatter is left as it was: it describes the spread around tool means in general,
        and one tool's share could not be taken out of it.

        Args:
            tool: index on the tools axis.
            hidden: (rows, dim), at least one row.

        Raises:
            ShapeError: if the shapes do not fit.
            CalibrationError: if there is no row, or a value is not finite.
        """
        rows, index = self._checked(hidden, torch.full((len(hidden),), tool))
        if not len(rows):
            raise CalibrationError("a tool's mean needs at least one row", tool=tool)
        fresh = ToolStatistics(len(self.counts), rows.shape[1], pooled=False)
        fresh.update(rows, index)
        self.means[tool], self.counts[tool] = fresh.means[tool], fresh.counts[tool]

    def with_tools(self, extra: int) -> ToolStatistics:
        """Return a copy with `extra` unseen tools at the end of the tools axis."""
        grown = self.copy()
        grown.counts = torch.cat([self.counts, self.counts.new_zeros(extra)])
        grown.means = torch.cat([self.means, self.means.new_zeros(extra, self.means.shape[1])])
        return grown

    def _checked(self, hidden: Tensor, tool_indices: Tensor) -> tuple[Tensor, Tensor]:
        if (
            hidden.ndim != 2
            or hidden.shape[1] != self.means.shape[1]
            or tool_indices.shape != hidden.shape[:1]
        ):
            raise ShapeError(
                f"expected hidden (rows, {self.means.shape[1]}) and as many tool_indices, "
                f"found {tuple(hidden.shape)} and {tuple(tool_indices.shape)}"
            )
        index = tool_indices.to("cpu", torch.int64)
        if bool(((index < 0) | (index >= len(self.counts))).any()):
            raise ShapeError(f"a tool index lies outside [0, {len(self.counts)})")
        rows = hidden.to("cpu", torch.float64)
        if not bool(torch.isfinite(rows).all()):
            raise CalibrationError(
                "a hidden state is NaN or infinite", hint="check the weights and the dtype"
            )
        return rows, index

    def global_mean(self) -> Tensor:
        """Return the (dim,) float64 mean of all rows.

        Raises:
            CalibrationError: before the first row.
        """
        total = int(self.counts.sum())
        if total == 0:
            raise CalibrationError("no hidden state was collected, so there is no mean")
        return (self.counts.to(torch.float64) / total) @ self.means

    def pooled_covariance(self) -> Tensor:
        """Return the (dim, dim) float64 within-tool covariance: scatter over rows minus tools.

        Raises:
            CalibrationError: if no scatter was kept, or no tool has two rows.
        """
        if self.scatter is None or self.freedom < 1:
            raise CalibrationError(
                "a covariance needs the pooled scatter and a tool with at least two rows",
                hint="collect more examples a tool, or use a cosine readout",
            )
        return self.scatter / self.freedom

    def shrunk_covariance(self, target: ShrinkageTarget = "identity") -> ShrunkCovariance:
        """Return the pooled covariance shrunk by `oas_shrinkage`.

        Args:
            target: "identity" shrinks towards the mean variance times the identity; "diagonal"
                shrinks the correlations towards zero and keeps every variance, so a few very large
                coordinates do not set the scale for all.

        Raises:
            CalibrationError: as `pooled_covariance`, or if a coordinate that must be scaled never
                varies.
        """
        covariance = self.pooled_covariance()
        spread = covariance.diagonal().sqrt()
        if float(spread.max()) == 0.0 or (target == "diagonal" and float(spread.min()) == 0.0):
            raise CalibrationError(
                "the hidden states do not vary within a tool, so they have no covariance"
            )
        if target == "identity":
            return oas_shrinkage(covariance, self.freedom)
        scale = spread[:, None] * spread[None, :]
        shrunk = oas_shrinkage(covariance / scale, self.freedom)
        return ShrunkCovariance(matrix=shrunk.matrix * scale, shrinkage=shrunk.shrinkage)

    def state(self) -> dict[str, Tensor]:
        """Return copies of all tensors, for a file; `from_state` restores them bit for bit."""
        tensors = {
            "counts": self.counts,
            "means": self.means,
            "freedom": torch.tensor(self.freedom),
        }
        if self.scatter is not None:
            tensors["scatter"] = self.scatter
        return {key: value.clone() for key, value in tensors.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ToolStatistics:
        """Return the statistics that `state` described.

        Raises:
            CalibrationError: if a tensor is missing.
            ShapeError: if the tensors do not fit each other.
        """
        missing = {"counts", "means", "freedom"} - set(state)
        if missing:
            raise CalibrationError(f"stored statistics lack {sorted(missing)}")
        means, counts, scatter = state["means"], state["counts"], state.get("scatter")
        wide = means.ndim == 2 and (
            scatter is None or scatter.shape == (means.shape[1], means.shape[1])
        )
        if not wide or counts.shape != means.shape[:1]:
            raise ShapeError("stored statistics do not fit each other")
        restored = cls(0, 0, pooled=False)
        restored.counts, restored.means = counts.clone(), means.clone()
        restored.scatter = None if scatter is None else scatter.clone()
        restored.freedom = int(state["freedom"])
        return restored

    def copy(self) -> ToolStatistics:
        """Return an independent copy."""
        return self.from_state(self.state())


def oas_shrinkage(covariance: Tensor, samples: int) -> ShrunkCovariance:
    """Return `covariance` shrunk towards (trace / dim) times the identity, by the OAS weight.

    OAS needs no fourth moments, so it can be computed from streamed second moments; Ledoit-Wolf
    cannot.

    Args:
        covariance: (dim, dim) float64 sample covariance with a positive trace.
        samples: degrees of freedom behind it, >= 1.

    Raises:
        CalibrationError: if the trace is not positive and finite.

    Source: Chen, Wiesel, Eldar & Hero (2010), "Shrinkage algorithms for MMSE covariance
        estimation", eq. 23.
    """
    dim = covariance.shape[0]
    trace = float(covariance.trace())
    if not 0.0 < trace < float("inf"):
        raise CalibrationError(f"a covariance must have a positive trace, found {trace}")
    squares = float(covariance.square().sum())  # trace of the square
    numerator = (1 - 2 / dim) * squares + trace**2
    denominator = (samples + 1 - 2 / dim) * (squares - trace**2 / dim)
    shrinkage = 1.0 if denominator <= 0 else min(1.0, numerator / denominator)
    matrix = (1 - shrinkage) * covariance
    matrix.diagonal().add_(shrinkage * trace / dim)
    return ShrunkCovariance(matrix=matrix, shrinkage=shrinkage)
