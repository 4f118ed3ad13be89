"""Readouts, margins and fallback means on vectors small enough to score by hand."""

from __future__ import annotations

import math
import time

import pytest
import torch

from toolguard.guard.errors import CalibrationError, ConfigError, ReadoutError, ShapeError
from toolguard.guard.readout import (
    READOUT_KINDS,
    Readout,
    build_readout,
    fallback_mean,
    margin,
    margins,
    top_gap,
    top_gaps,
)

MEANS = torch.tensor([[3.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
CENTRE = torch.tensor([1.0, 1.0], dtype=torch.float64)


def random_readout(kind: str, tools: int = 5, dim: int = 6) -> tuple[Readout, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(tools, dim, dtype=torch.float64, generator=generator)
    root = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    covariance = root @ root.T + torch.eye(dim)
    readout = build_readout(kind, means, means.mean(dim=0), covariance)
    return readout, torch.randn(4, dim, generator=generator)


def test_cosine_by_hand() -> None:
    """The cosine readout ignores the lengths of state and mean."""
    scores = build_readout("cosine", MEANS).scores(torch.tensor([3.0, 4.0]))
    assert scores.tolist() == pytest.approx([0.6, 0.8])


def test_centred_cosine_by_hand() -> None:
    """The centred cosine compares directions seen from the centre."""
    scores = build_readout("centred_cosine", MEANS, CENTRE).scores(torch.tensor([3.0, 1.0]))
    # h - c = (2, 0); mu - c = (2, -1) and (-1, 1)
    assert scores.tolist() == pytest.approx([2 / math.sqrt(5), -1 / math.sqrt(2)])


def test_lda_by_hand() -> None:
    """A difference of discriminant scores is half that of squared Mahalanobis distances."""
    covariance = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    scores = build_readout("lda", MEANS, CENTRE, covariance).scores(torch.tensor([1.0, 1.0]))
    # squared distances of (1, 1): (2^2)/4 + 1 = 2 to tool 0, 1/4 + 1 = 1.25 to tool 1
    assert float(scores[0] - scores[1]) == pytest.approx(-0.5 * (2 - 1.25))


@pytest.mark.parametrize("kind", READOUT_KINDS)
def test_menu_view_and_index_agree(kind: str) -> None:
    """A menu view, an index and the full scores give the same numbers for the same tools."""
    readout, hidden = random_readout(kind)
    rows = torch.tensor([3, 0, 4])
    view = readout.for_menu([3, 0, 4])
    assert view.weights.is_contiguous()
    assert torch.allclose(view.scores(hidden), readout.scores(hidden)[:, rows])
    assert torch.allclose(readout.scores(hidden, rows), view.scores(hidden))
    assert torch.allclose(view.scores(hidden[0]), view.scores(hidden)[0])


@pytest.mark.parametrize("kind", READOUT_KINDS)
def test_scores_are_float32_for_any_input(kind: str) -> None:
    """A bfloat16 state is read in float32."""
    readout, hidden = random_readout(kind)
    scores = readout.to("cpu").scores(hidden.to(torch.bfloat16))
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, readout.scores(hidden.to(torch.bfloat16).float()))


@pytest.mark.parametrize("kind", READOUT_KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_state_is_refused(kind: str, bad: float) -> None:
    """A NaN or infinite state raises instead of scoring."""
    readout, hidden = random_readout(kind)
    hidden[1, 2] = bad
    with pytest.raises(ReadoutError):
        readout.scores(hidden)


def test_zero_state_has_no_cosine() -> None:
    """A state of zero length has no direction, so a cosine readout raises."""
    with pytest.raises(ReadoutError):
        build_readout("cosine", MEANS).scores(torch.zeros(2))


def test_wrong_shapes_are_refused() -> None:
    """A state of another width, and tools outside the axis or none at all, raise shape errors."""
    readout, hidden = random_readout("cosine")
    with pytest.raises(ShapeError):
        readout.scores(hidden[:, :5])
    with pytest.raises(ShapeError):
        readout.scores(hidden, torch.tensor([5]))
    with pytest.raises(ShapeError):
        readout.for_menu([])
    with pytest.raises(ShapeError):
        Readout(
            kind="cosine",
            weights=torch.zeros(2, 3),
            bias=torch.zeros(3),
            centre=None,
            normalise=True,
        )
    with pytest.raises(ShapeError):
        build_readout("centred_cosine", MEANS, torch.zeros(3))


def test_missing_or_unusable_parts_are_refused() -> None:
    """No centre, no covariance, a singular covariance, a zero mean and NaN means raise."""
    singular = torch.ones(2, 2, dtype=torch.float64)
    for arguments in (
        ("centred_cosine", MEANS),
        ("lda", MEANS, CENTRE),
        ("lda", MEANS, CENTRE, singular - 2 * torch.eye(2)),
        ("cosine", MEANS * 0),
        ("cosine", MEANS * math.nan),
    ):
        with pytest.raises(CalibrationError):
            build_readout(*arguments)
    with pytest.raises(ConfigError):
        build_readout("euclid", MEANS)


def test_margin_is_against_the_best_other() -> None:
    """The margin compares the chosen tool with its best rival, the gap compares the best two."""
    scores = torch.tensor([[0.5, 0.9, 0.2], [0.5, 0.9, 0.2]])
    assert margins(scores, torch.tensor([1, 2])).tolist() == pytest.approx([0.4, -0.7])
    assert top_gaps(scores).tolist() == pytest.approx([0.4, 0.4])
    assert margin(scores[0], 0) == pytest.approx(-0.4)
    assert top_gap(scores[0]) == pytest.approx(0.4)


def test_tied_best_has_margin_zero() -> None:
    """A tie between the chosen tool and a rival gives margin and gap 0."""
    scores = torch.tensor([0.7, 0.1, 0.7])
    assert margin(scores, 2) == 0.0
    assert top_gap(scores) == 0.0


def test_single_tool_has_infinite_margin() -> None:
    """With one tool in the menu nothing competes, so margin and gap are +inf."""
    assert margin(torch.tensor([-3.0]), 0) == math.inf
    assert top_gap(torch.tensor([-3.0])) == math.inf


def test_one_row_gives_what_a_batch_gives() -> None:
    """Calibration and run time agree to the last bit, whatever the size of the scores."""
    draw = torch.Generator().manual_seed(0)
    for tools in range(1, 9):
        for power in range(-6, 7):
            scores = torch.randn(tools, generator=draw) * 10.0**power
            assert margin(scores, 0) == float(margins(scores[None], torch.tensor([0])))
            assert top_gap(scores) == float(top_gaps(scores[None]))
    unmet = torch.tensor([0.5, -math.inf])
    assert margin(unmet, 0) == math.inf
    assert top_gap(unmet) == math.inf


def test_bad_margin_input_is_refused() -> None:
    """NaN scores, a chosen index outside the menu and empty scores raise."""
    with pytest.raises(ReadoutError):
        margin(torch.tensor([math.nan, 1.0]), 1)
    with pytest.raises(ReadoutError):
        top_gap(torch.tensor([math.nan, 1.0]))
    with pytest.raises(ShapeError):
        margin(torch.tensor([0.0, 1.0]), 2)
    with pytest.raises(ShapeError):
        margin(torch.tensor([0.0, 1.0]), -1)
    with pytest.raises(ShapeError):
        top_gap(torch.zeros(0))


def test_fallback_points_along_the_row_at_the_usual_length() -> None:
    """The stand-in lies from the centre along the centred row, as far as the median mean."""
    means = CENTRE + torch.tensor([[3.0, 0.0], [0.0, 5.0], [4.0, 0.0]], dtype=torch.float64)
    found = fallback_mean(torch.tensor([1.0, 7.0]), torch.tensor([1.0, 2.0]), means, CENTRE)
    assert found.tolist() == pytest.approx([1.0, 5.0])  # centre + (0, 1) * median(3, 5, 4)


def test_fallback_without_direction_is_refused() -> None:
    """A row equal to the mean row, no calibrated mean, or another width raises."""
    row = torch.tensor([1.0, 2.0])
    with pytest.raises(CalibrationError):
        fallback_mean(row, row, MEANS, CENTRE)
    with pytest.raises(CalibrationError):
        fallback_mean(row, row * 0, MEANS[:0], CENTRE)
    with pytest.raises(ShapeError):
        fallback_mean(row[:1], row, MEANS, CENTRE)


def test_thousand_tools_take_a_matvec() -> None:
    """A thousand tools at width 4,096 cost a few matrix-vector products."""
    readout = build_readout("cosine", torch.randn(1000, 4096, dtype=torch.float64))
    hidden = torch.randn(4096)
    readout.scores(hidden)

    def fastest(call) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    assert fastest(lambda: readout.scores(hidden)) < 20 * fastest(lambda: readout.weights @ hidden)
