"""The signals: hand-computed values, what is left out, and one definition for fit and run time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_calls import made_calls

from toolguard.calibration.fitting.fit_input import FitOptions
from toolguard.calibration.fitting.fit_profile import fit_profile
from toolguard.calibration.labels.labelled_calls import Readings, menu_scores, signals_of
from toolguard.guard.errors import ReadoutError
from toolguard.guard.guard import Evidence, Guard
from toolguard.guard.policy import Policy
from toolguard.guard.signals import SIGNALS, menu_entropy, read_signals
from toolguard.guard.tools import Menu, Tool

INF = math.inf


def scores(*values):
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize(
    ("values", "entropy"),
    [
        ((0.0, 0.0), math.log(2)),
        ((-5.0,), 0.0),
        ((math.log(0.75), math.log(0.25)), 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
        ((0.0, -INF, 0.0), math.log(2)),
        ((-1000.0, -1000.0, -1000.0, -1000.0), math.log(4)),
        ((0.0, -800.0), 0.0),
    ],
)
def test_entropy_is_that_of_the_normalised_scores(values, entropy):
    """Nats over the menu; a common constant drops out, and no chance at all adds nothing."""
    assert menu_entropy(scores(*values)) == pytest.approx(entropy, abs=1e-6)


def test_entropy_without_a_finite_score_is_unknown():
    """A distribution that was not read has no entropy."""
    assert math.isnan(menu_entropy(scores(-INF, -INF)))


def test_each_signal_is_larger_where_the_choice_is_safer():
    """Margins of the choice, the negated entropy, and the gap whichever tool was chosen."""
    found = read_signals({"logprob": scores(-0.1, -3.0), "activation": scores(0.2, 0.9)}, chosen=0)
    assert tuple(found) == SIGNALS
    assert found["logprob"] == pytest.approx(2.9)
    assert found["activation"] == pytest.approx(-0.7)
    assert found["activation_gap"] == pytest.approx(0.7)
    assert found["entropy"] == pytest.approx(-menu_entropy(scores(-0.1, -3.0)))


@pytest.mark.parametrize(
    ("read", "left"),
    [
        ({}, ()),
        ({"logprob": scores(-1.0, -2.0)}, ("logprob", "entropy")),
        ({"activation": scores(1.0, 0.5)}, ("activation", "activation_gap")),
        ({"activation": scores(-INF, 0.5)}, ()),  # the chosen tool is unknown
        ({"activation": scores(1.0, -INF)}, ()),  # all its rivals are
    ],
)
def test_what_compares_with_nothing_is_left_out(read, left):
    """A signal without scores, without the chosen tool, or without a known rival is not made up."""
    assert tuple(read_signals(read, chosen=0)) == left


def test_a_menu_of_one_tool_has_nothing_to_lose_to():
    """Margins are infinite and the entropy is zero: the safest there is."""
    found = read_signals({"logprob": scores(-4.0), "activation": scores(0.1)}, chosen=0)
    assert found == {"logprob": INF, "activation": INF, "entropy": 0.0, "activation_gap": INF}


def test_only_what_is_wanted_is_read():
    """A profile that does not use a signal does not pay for it."""
    assert tuple(read_signals({"logprob": scores(0.0, -1.0)}, 0, ["logprob"])) == ("logprob",)


def test_a_score_that_is_nan_is_an_error():
    """A broken reading is not a small margin."""
    with pytest.raises(ReadoutError, match="NaN"):
        read_signals({"logprob": scores(0.0, math.nan)}, chosen=0)


def test_fit_and_run_time_read_the_same_numbers():
    """What calibration fits to is, bit for bit, what the guard reads of the same states."""
    made = made_calls(80, layers=(1,))
    profile = fit_profile(made, FitOptions())
    readings = Readings.empty(len(made.calls))
    for batch in made.layer_pass(1):
        readings.put(profile.readout, made.calls, batch)
    columns = signals_of(made.calls, readings)
    for batch in made.layer_pass(1):
        for place, hidden in zip(batch.calls, batch.hidden, strict=True):
            call = made.calls[place]
            activation = menu_scores(profile.readout, [call.tools], hidden[None])[0]
            found = read_signals({"activation": activation}, call.chosen)
            assert found["activation"] == pytest.approx(columns["activation"][place], abs=1e-5)
            assert found["activation_gap"] == pytest.approx(
                columns["activation_gap"][place], abs=1e-5
            )
    assert np.array_equal(columns["entropy"], [-call.entropy for call in made.calls])


@pytest.fixture(scope="module")
def view():
    """Four tools as the made-up calls name them."""
    return Menu(tuple(Tool(name=f"tool_{i}") for i in range(4)))


def guarded(signals):
    return Guard(fit_profile(made_calls(400), FitOptions(signals=signals)), Policy())


def evidence(**given):
    return Evidence(
        chosen="tool_0", hidden=torch.ones(6), logprob=scores(-0.2, -2.0, -3.0, -4.0), **given
    )


@pytest.mark.parametrize(
    ("signals", "margins"),
    [
        (("logprob",), {"logprob", "activation"}),
        (("logprob", "entropy"), {"logprob", "activation", "entropy"}),
        (SIGNALS, set(SIGNALS)),
    ],
)
def test_the_guard_reads_what_its_profile_uses(signals, margins, view):
    """Log-prob and activation are always on record, other signals where P(wrong) needs them."""
    guard = guarded(signals)
    reading = guard.read(evidence(), guard.profile.view(view))
    assert set(reading.margins) == margins
    used = {name: reading.margins[name] for name in signals}
    assert reading.p_wrong == guard.profile.calibrator.probability(used)


def test_a_guard_by_log_prob_alone_judges_without_the_activation(view):
    """A profile whose log-prob suffices gives P(wrong) where the state was not read."""
    guard = guarded(("logprob",))
    bare = Evidence(chosen="tool_0", logprob=scores(-0.2, -2.0, -3.0, -4.0))
    reading = guard.read(bare, guard.profile.view(view))
    assert set(reading.margins) == {"logprob"}
    assert reading.p_wrong is not None
    both = guarded(("logprob", "activation"))
    assert both.read(bare, both.profile.view(view)).p_wrong is None


def test_steering_does_not_hang_on_the_signals(view):
    """Where log-prob suffices the activation still says where to push a state."""
    policy = Policy.load({"mode": "enforce", "steering": {"max_gap": 1000.0}})
    guard = Guard(fit_profile(made_calls(400), FitOptions(signals=("logprob",))), policy)
    known = replace(guard.profile.view(view), statuses=dict.fromkeys(view.names, "calibrated"))
    target, vector = guard.steering_direction(torch.ones(6), known)
    best = known.scores(torch.ones(6)).argmax()
    assert target == view.names[int(best)]
    assert vector.shape == (6,)
