"""Streaming statistics against the batch computation."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.covariance import OAS

from toolguard.calibration.fitting.statistics import ToolStatistics, oas_shrinkage
from toolguard.guard.errors import CalibrationError, ShapeError

TOOLS, DIM = 4, 7


def sample(rows: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, DIM, dtype=torch.float64, generator=generator) * 3 + 1000
    tools = torch.randint(0, TOOLS, (rows,), generator=generator)
    return hidden + tools[:, None], tools


def streamed(hidden: torch.Tensor, tools: torch.Tensor, size: int) -> ToolStatistics:
    statistics = ToolStatistics(TOOLS, DIM)
    for start in range(0, len(hidden), size):
        statistics.update(hidden[start : start + size], tools[start : start + size])
    return statistics


def batch_covariance(hidden: torch.Tensor, tools: torch.Tensor) -> torch.Tensor:
    scatter = torch.zeros(DIM, DIM, dtype=torch.float64)
    for tool in range(TOOLS):
        rows = hidden[tools == tool]
        scatter += (rows - rows.mean(dim=0)).T @ (rows - rows.mean(dim=0))
    return scatter / (len(hidden) - TOOLS)


def test_hand_computed() -> None:
    """Two tools in one dimension give the means, scatter and covariance worked out by hand."""
    statistics = ToolStatistics(2, 1)
    statistics.update(torch.tensor([[1.0], [3.0], [10.0]]), torch.tensor([0, 0, 1]))
    statistics.update(torch.tensor([[14.0]]), torch.tensor([1]))
    assert statistics.counts.tolist() == [2, 2]
    assert statistics.means.tolist() == [[2.0], [12.0]]
    assert statistics.global_mean().tolist() == [7.0]
    # scatter 2 + 8, four rows minus two tools
    assert statistics.pooled_covariance().tolist() == [[5.0]]


@pytest.mark.parametrize("size", [1, 7, 60])
def test_streaming_equals_batch(size: int) -> None:
    """Any cut into batches gives the batch result within 1e-10, far from the origin too."""
    hidden, tools = sample()
    statistics = streamed(hidden, tools, size)
    for tool in range(TOOLS):
        assert torch.allclose(
            statistics.means[tool], hidden[tools == tool].mean(dim=0), rtol=0, atol=1e-10
        )
    assert torch.allclose(
        statistics.pooled_covariance(), batch_covariance(hidden, tools), rtol=0, atol=1e-10
    )
    assert torch.allclose(statistics.global_mean(), hidden.mean(dim=0), rtol=0, atol=1e-10)


def test_merge_equals_one_stream() -> None:
    """Merging two parts gives the whole, tools missing from one included, and changes neither."""
    hidden, tools = sample()
    first = tools < 3
    left = streamed(hidden[first], tools[first], 9)
    right = streamed(hidden[~first], tools[~first], 9)
    extra, extra_tools = sample(20, seed=1)
    right.update(extra, extra_tools)
    before = right.state()
    merged = left.merge(right)
    everything, labels = torch.cat([hidden, extra]), torch.cat([tools, extra_tools])
    assert torch.allclose(
        merged.pooled_covariance(), batch_covariance(everything, labels), rtol=0, atol=1e-10
    )
    assert torch.equal(merged.counts, torch.bincount(labels, minlength=TOOLS))
    assert all(torch.equal(before[key], value) for key, value in right.state().items())


def test_updating_one_tool_leaves_the_others() -> None:
    """More rows of one tool leave every other tool's mean bit-identical."""
    hidden, tools = sample()
    statistics = streamed(hidden, tools, 13)
    before = statistics.means.clone()
    statistics.update(hidden[:5] + 1, torch.full((5,), 2))
    others = torch.tensor([0, 1, 3])
    assert torch.equal(statistics.means[others], before[others])
    assert not torch.equal(statistics.means[2], before[2])


def test_replacing_and_adding_tools_leaves_the_rest() -> None:
    """A replaced or added tool changes its own mean and count; other means and the scatter stay."""
    hidden, tools = sample()
    statistics = streamed(hidden, tools, 13)
    grown = statistics.with_tools(1)
    grown.replace_tool(1, hidden[:3])
    grown.replace_tool(TOOLS, hidden[3:5])
    assert torch.allclose(grown.means[1], hidden[:3].mean(dim=0), rtol=0, atol=1e-10)
    assert grown.counts.tolist() == [statistics.counts[0], 3, *statistics.counts[2:], 2]
    others = torch.tensor([0, 2, 3])
    assert torch.equal(grown.means[others], statistics.means[others])
    assert torch.equal(grown.pooled_covariance(), statistics.pooled_covariance())


def test_state_round_trip() -> None:
    """Stored and restored statistics go on exactly where they were."""
    hidden, tools = sample()
    whole = streamed(hidden, tools, 20)
    half = ToolStatistics.from_state(streamed(hidden[:40], tools[:40], 20).state())
    half.update(hidden[40:], tools[40:])
    assert all(torch.equal(half.state()[key], value) for key, value in whole.state().items())
    assert half.state().keys() == whole.state().keys()


def test_refused_rows_change_nothing() -> None:
    """A NaN, a wrong width or an unknown tool raises and leaves the statistics as they were."""
    hidden, tools = sample()
    statistics = streamed(hidden, tools, 20)
    before = statistics.state()
    bad = hidden[:2].clone()
    bad[1, 0] = math.nan
    with pytest.raises(CalibrationError):
        statistics.update(bad, tools[:2])
    with pytest.raises(ShapeError):
        statistics.update(hidden[:2, :3], tools[:2])
    with pytest.raises(ShapeError):
        statistics.update(hidden[:2], torch.tensor([0, TOOLS]))
    with pytest.raises(CalibrationError):
        statistics.replace_tool(0, hidden[:0])
    with pytest.raises(ShapeError):
        statistics.merge(ToolStatistics(TOOLS, DIM, pooled=False))
    statistics.update(hidden[:0], tools[:0])
    assert all(torch.equal(before[key], value) for key, value in statistics.state().items())


def test_covariance_needs_data() -> None:
    """No rows, one row a tool, rows without spread, and no scatter raise a clear error."""
    with pytest.raises(CalibrationError):
        ToolStatistics(2, 3).global_mean()
    single = ToolStatistics(2, 3)
    single.update(torch.randn(2, 3), torch.tensor([0, 1]))
    with pytest.raises(CalibrationError):
        single.pooled_covariance()
    flat = ToolStatistics(1, 3)
    flat.update(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(CalibrationError):
        flat.shrunk_covariance()
    bare = ToolStatistics(1, 3, pooled=False)
    bare.update(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(CalibrationError):
        bare.pooled_covariance()
    with pytest.raises(CalibrationError):
        ToolStatistics.from_state({"counts": torch.zeros(1)})


def test_shrinkage_by_hand() -> None:
    """The shrinkage of diag(3, 1) with 9 degrees of freedom is the formula's 8/9, trace kept."""
    found = oas_shrinkage(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)), 9)
    # (1 - 2/2) * 10 + 16 = 16 over (9 + 1 - 1) * (10 - 16 / 2) = 18
    assert found.shrinkage == pytest.approx(8 / 9)
    assert found.matrix.diagonal().tolist() == pytest.approx([2 + 1 / 9, 2 - 1 / 9])


def test_shrinkage_is_near_the_reference() -> None:
    """In a wide space the shrinkage agrees with scikit-learn, which drops the terms in 1 / dim."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(40, 300, dtype=torch.float64, generator=generator)
    rows *= torch.linspace(0.2, 3, 300, dtype=torch.float64)
    rows -= rows.mean(dim=0)
    reference = OAS(assume_centered=True).fit(rows.numpy())
    found = oas_shrinkage(rows.T @ rows / 40, 40)
    assert found.shrinkage == pytest.approx(reference.shrinkage_, rel=0.01)
    assert float(torch.linalg.eigvalsh(found.matrix).min()) > 0


def test_diagonal_target_keeps_variances_and_scale() -> None:
    """The diagonal target keeps every variance and follows a rescaled coordinate."""
    hidden, tools = sample()
    plain = streamed(hidden, tools, 20)
    scale = torch.ones(DIM, dtype=torch.float64)
    scale[0] = 100.0
    stretched = streamed(hidden * scale, tools, 20).shrunk_covariance("diagonal").matrix
    matrix = plain.shrunk_covariance("diagonal").matrix
    assert torch.allclose(matrix.diagonal(), plain.pooled_covariance().diagonal())
    assert torch.allclose(stretched, matrix * scale[:, None] * scale[None, :])


def test_shrunk_covariance_is_definite_with_few_rows() -> None:
    """With fewer rows than coordinates the shrunk covariance is still positive definite."""
    hidden, tools = sample(8)
    found = streamed(hidden, tools, 8).shrunk_covariance()
    assert 0 < found.shrinkage <= 1
    assert float(torch.linalg.eigvalsh(found.matrix).min()) > 0
