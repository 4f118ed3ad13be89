"""Which signals P(wrong) uses: useless ones stay out, useful ones come in, nothing leaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from toolguard.calibration.fitting.signal_choice import (
    PENALTIES,
    FoldedCalls,
    best_penalty,
    choose_signals,
    out_of_fold_risk,
)
from toolguard.guard.errors import CalibrationError
from toolguard.guard.signals import SIGNALS

FOLDS = 5


def folded(seed, *, n=300, useful=(), base=-1.5):
    """Calls whose log-prob margin tells errors; of the others only `useful` ones add evidence."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.normal(size=n) for name in SIGNALS}
    log_odds = base - 1.2 * columns["logprob"] - 1.5 * sum(columns[name] for name in useful)
    wrong = rng.random(n) < 1 / (1 + np.exp(-log_odds))
    return FoldedCalls(
        wrong=wrong, folds=np.arange(n) % FOLDS, without=dict.fromkeys(range(FOLDS), columns)
    )


@pytest.mark.slow
def test_useless_signals_are_rarely_kept():
    """Noise beside log-prob is kept in about one run of forty, however many signals are tried."""
    kept = [choose_signals(folded(seed), seed=0).signals != ("logprob",) for seed in range(12)]
    # At 2.5 % a run, three of twelve have a chance of 0.3 %.
    assert sum(kept) <= 2


def test_a_useful_signal_is_kept_and_said():
    """Evidence that log-prob lacks lowers the risk, and the words name it."""
    choice = choose_signals(folded(0, useful=("activation",)), seed=0)
    assert choice.signals == ("logprob", "activation")
    assert choice.by == "measurement"
    assert "activation lowers the risk at equal coverage" in choice.words
    assert "suffices" not in choice.words
    first = {tried.name: tried for tried in choice.tried if tried.beside == ("logprob",)}
    assert first["activation"].kept
    assert first["activation"].aurc_difference.high < 0 < first["activation"].auroc_difference.low
    assert choice.against_logprob["aurc"]["high"] < 0


def test_each_step_counts_how_many_it_tries():
    """Intervals are wider where more signals are tried, and a step follows each one kept."""
    choice = choose_signals(folded(3, n=500, useful=("activation", "entropy")), seed=0)
    assert set(choice.signals) == {"logprob", "activation", "entropy"}
    confidences = [tried.confidence for tried in choice.tried]
    assert confidences == pytest.approx([1 - 0.05 / 3] * 3 + [1 - 0.05 / 2] * 2 + [0.95])
    assert [len(tried.beside) for tried in choice.tried] == [1, 1, 1, 2, 2, 3]


def test_a_copy_of_log_prob_adds_nothing():
    """A signal that says the same again is not kept, and log-prob suffices."""
    calls = folded(4)
    columns = dict(calls.without[0])
    columns["entropy"] = columns["logprob"]
    choice = choose_signals(replace(calls, without=dict.fromkeys(range(FOLDS), columns)), seed=0)
    assert choice.signals == ("logprob",)
    assert choice.words.endswith("log-prob suffices")
    assert choice.against_logprob is None


def test_few_errors_settle_nothing():
    """With fewer than ten errors no interval is worth its name, so nothing is added."""
    calls = folded(5, n=60, useful=("activation",), base=-4.0)
    few = replace(calls, wrong=np.arange(60) < 9)
    choice = choose_signals(few, seed=0)
    assert (choice.signals, choice.tried) == (("logprob",), ())
    assert choice.words == "60 calls with 9 errors cannot tell signals apart; log-prob suffices"


def test_one_fold_settles_nothing():
    """Without a fold to hold out there is no measurement, and no error either."""
    calls = folded(6)
    one = FoldedCalls(
        wrong=calls.wrong, folds=np.zeros_like(calls.folds), without={0: calls.without[0]}
    )
    assert choose_signals(one, seed=0).signals == ("logprob",)


@pytest.mark.parametrize(("by_preset", "who"), [(False, "--signals"), (True, "the preset")])
def test_fixed_signals_are_used_whatever_is_measured(by_preset, who):
    """The user's choice stands; what was measured is said beside it."""
    choice = choose_signals(folded(7), seed=0, fixed=("activation",), by_preset=by_preset)
    assert choice.signals == ("activation",)
    assert choice.uses == f"P(wrong) uses activation, fixed by {who}"
    assert choice.words.endswith("log-prob suffices")
    assert choice.against_logprob["aurc"]["value"] > 0


def test_no_call_is_scored_by_a_fit_that_saw_it():
    """Turning every outcome of one fold round changes the risks of all folds but that one."""
    calls = folded(8, useful=("activation",))
    own = calls.folds == 2
    turned = replace(calls, wrong=calls.wrong ^ own)
    signals = ("logprob", "activation")
    before, after = out_of_fold_risk(calls, signals), out_of_fold_risk(turned, signals)
    assert np.array_equal(before[own], after[own])
    assert not np.any(before[~own] == after[~own])


def test_each_fold_uses_the_readout_chosen_without_it():
    """The signals of a fold's calls come from the entry made without that fold."""
    calls = folded(9, useful=("activation",))
    spoilt = {**calls.without[0], "activation": np.full(len(calls.wrong), 7.0)}
    only_zero = replace(calls, without={**calls.without, 0: spoilt})
    signals = ("logprob", "activation")
    before, after = out_of_fold_risk(calls, signals), out_of_fold_risk(only_zero, signals)
    assert np.array_equal(before[calls.folds != 0], after[calls.folds != 0])
    assert not np.array_equal(before[calls.folds == 0], after[calls.folds == 0])


def test_the_penalty_follows_the_evidence():
    """Noise is penalised most; with nothing to hold out the strongest penalty stands."""
    rng = np.random.default_rng(1)
    folds = np.arange(200) % FOLDS
    noise = {"logprob": rng.normal(size=200)}
    assert best_penalty(noise, rng.random(200) < 0.3, folds) == PENALTIES[0]
    clear = {"logprob": rng.normal(size=200)}
    assert best_penalty(clear, clear["logprob"] < -0.5, folds) == PENALTIES[-1]
    assert best_penalty(clear, clear["logprob"] < -0.5, np.zeros(200, int)) == PENALTIES[0]


def test_the_same_seed_gives_the_same_choice():
    """The choice is a function of calls and seed."""
    calls = folded(10, n=200)
    assert choose_signals(calls, seed=3).to_dict() == choose_signals(calls, seed=3).to_dict()


def test_a_call_without_a_fold_is_refused():
    """Folds and their signals must fit each other."""
    calls = folded(11)
    with pytest.raises(CalibrationError, match="every fold its signals"):
        replace(calls, without={0: calls.without[0]})
