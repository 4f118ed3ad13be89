"""Votes: each one's risk of a hand-made call, and that no vote learns from a call it scores."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from vote_evidence import NAMES, made_call, made_evidence

from toolguard.calibration.measuring.metrics import auroc
from toolguard.calibration.votes.catalogue import all_votes, choose_votes, names_of
from toolguard.calibration.votes.cross_fitting import FittedVote, check_folds, fold_calls
from toolguard.calibration.votes.evidence import VoteEvidence, WrittenCall
from toolguard.calibration.votes.logit_lens import lens_by_block
from toolguard.calibration.votes.measurement import argument_errors, measure_votes
from toolguard.calibration.votes.probe import PENALTIES, choose_penalty, fit_logistic
from toolguard.calibration.votes.vote import Cost, Risks
from toolguard.guard.errors import CalibrationError, ConfigError
from toolguard.guard.tools import ToolCall

BY_NAME = {vote.name: vote for vote in all_votes()}


def risk_of(name, call):
    """Return one vote's risk of one call."""
    evidence = VoteEvidence(calls=[call], folds=None)
    return BY_NAME[name].risks(evidence).values[0]


def written(tokens=9, nll=0.25, **arguments):
    call = ToolCall(name=NAMES[0], arguments=arguments)
    return WrittenCall(call=call, tokens=tokens, nll=nll)


@pytest.mark.parametrize(
    ("name", "call", "expected"),
    [
        ("logprob", made_call(), -2.9),
        ("logprob", made_call(chosen=1), 2.9),
        ("first_token", made_call(), -2.9),
        ("first_token", made_call(names=("only",), scores=(0.0,)), -math.inf),
        ("entropy", made_call(scores=(math.log(0.5), math.log(0.5), -math.inf)), math.log(2)),
        ("entropy", made_call(names=("only",), scores=(0.0,)), 0.0),
        ("nll", made_call(written=written(nll=0.25)), 0.25),
        ("call_length", made_call(written=written(tokens=9)), 9.0),
        ("self_consistency", made_call(samples=(NAMES[0], NAMES[1], None, NAMES[0])), 0.5),
        ("p_true", made_call(yes=1.5), -1.5),
        ("embedding", made_call(similarity=(0.9, 0.4, 0.7)), -0.2),
        ("embedding", made_call(names=("only",), scores=(0.0,), similarity=(0.1,)), -math.inf),
        # The later half of five blocks: the last three, of which one prefers another name.
        ("logit_lens", made_call(lens=torch.tensor([-1.0, -1.0, -1.0, 2.0, 3.0])), 1.0),
    ],
)
def test_risks_of_a_call(name, call, expected):
    """Each vote reads its number off the evidence, with the sign that makes more mean wrong."""
    assert risk_of(name, call) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "activation",
        "combined",
        "call_length",
        "cosine",
        "embedding",
        "lens_probe",
        "logit_lens",
        "nll",
        "p_true",
        "probe",
        "self_consistency",
    ],
)
def test_what_was_not_read_is_the_most_risky_and_counted(name):
    """A call without a vote's evidence gets a risk above any other, never a NaN."""
    found = BY_NAME[name].risks(VoteEvidence(calls=[made_call(), made_call(1)], folds=None))
    assert found.values.tolist() == [math.inf, math.inf]
    assert found.unreadable == 2


def test_a_spelled_out_call_that_is_not_whole_cannot_be_read_but_has_a_length():
    """A call that never ends has no likelihood of its values; its length is known."""
    call = made_call(written=WrittenCall(call=None, tokens=96, nll=None))
    assert risk_of("nll", call) == math.inf
    assert risk_of("call_length", call) == 96


def test_a_nan_is_refused():
    """A vote that cannot read a call must say so; NaN would vanish in a ranking."""
    with pytest.raises(CalibrationError, match="1 of 2 risks are NaN"):
        Risks.of([0.5, math.nan])


def test_free_votes_cost_nothing_and_all_is_all():
    """The default runs the model not once more than reading does."""
    free, everything = choose_votes("free"), choose_votes("all")
    assert all(vote.cost == Cost() for vote in free)
    assert {vote.name for vote in everything} - {vote.name for vote in free} == {
        "call_length",
        "embedding",
        "nll",
        "p_true",
        "self_consistency",
    }
    assert len(set(names_of(everything))) == len(everything)


def test_the_baseline_is_always_there():
    """Whatever is asked for, the log-prob margin stands beside it."""
    assert names_of(choose_votes("random, nll")) == ("logprob", "nll", "random")


def test_more_samples_cost_more():
    """The cost of self-consistency counts every sampled name."""
    five, ten = (choose_votes("self_consistency", samples)[1].cost for samples in (5, 10))
    assert ten.tokens == 2 * five.tokens
    assert five.prompts == ten.prompts == 1


@pytest.mark.parametrize(("text", "words"), [("logprop", "logprop"), (" , ", "names no vote")])
def test_a_vote_that_is_not_there(text, words):
    """A mistyped name is told, with the names there are."""
    with pytest.raises(ConfigError, match=words) as caught:
        choose_votes(text)
    assert "self_consistency" in caught.value.hint


def test_each_call_is_scored_by_a_fit_that_saw_neither_it_nor_its_near_duplicates():
    """The fit gets exactly the calls of the other folds."""
    queries = [" ".join(f"word{place}x{city % 10}" for place in range(4)) for city in range(30)]
    twins = [made_call(place, query=query) for place, query in enumerate(queries)]
    folds = fold_calls([call.judged.record for call in twins], seed=0)
    evidence = VoteEvidence(calls=twins, folds=folds)

    def fit(calls, _folds):
        seen = {call.judged.record.query for call in calls}
        return lambda others: [float(call.judged.record.query in seen) for call in others]

    found = FittedVote(name="spy", fit=fit, needs=frozenset()).risks(evidence)
    assert len(set(folds.tolist())) > 1
    assert found.values.tolist() == [0.0] * 30


def test_near_duplicates_in_two_folds_are_refused():
    """Folds that would let a fit see a near duplicate of what it scores end the measurement."""
    calls = [made_call(0, query="book a table for two in Rome"),
             made_call(1, query="Book a table for two in Rome!"),
             made_call(2)]  # fmt: skip
    evidence = VoteEvidence(calls=calls, folds=np.array([0, 1, 1]))
    with pytest.raises(CalibrationError, match="'r0' and 'r1' are near duplicates"):
        BY_NAME["cosine"].risks(evidence)


def test_a_record_in_two_folds_is_refused():
    """The same record twice is the plainest leak of all."""
    record = made_call().judged.record
    with pytest.raises(CalibrationError, match="'r0' and 'r0'"):
        check_folds([record, record], np.array([0, 1]))


def test_queries_that_are_all_alike_make_no_folds():
    """Without two groups nothing can be fitted and scored apart; the votes say so."""
    records = [made_call(place, query="the very same words").judged.record for place in range(4)]
    assert fold_calls(records, seed=0) is None


def test_a_fold_whose_fit_fails_cannot_be_read():
    """Calls of one fold are unreadable if the others do not suffice; the rest is scored."""
    calls = [made_call(place) for place in range(4)]
    evidence = VoteEvidence(calls=calls, folds=np.array([0, 0, 1, 1]))

    def fit(calls, _folds):
        if calls[0].judged.record.id == "r0":
            raise CalibrationError("too few")
        return lambda others: [0.5] * len(others)

    found = FittedVote(name="half", fit=fit, needs=frozenset()).risks(evidence)
    assert found.values.tolist() == [0.5, 0.5, math.inf, math.inf]
    assert found.unreadable == 2


@pytest.mark.parametrize("name", ["cosine_3", "cosine", "lda"])
def test_means_find_wrong_calls(name):
    """Where states point to the right tool, a small margin of the chosen one tells an error."""
    evidence = made_evidence()
    found = BY_NAME[name].risks(evidence)
    assert found.unreadable == 0
    assert auroc(found.values, evidence.wrong).value > 0.85


@pytest.mark.parametrize("name", ["lda", "cosine", "probe"])
def test_fitted_votes_find_nothing_where_there_is_nothing(name):
    """States of other calls give chance: a vote neither gains nor loses by being fitted here."""
    draws = [made_evidence(doubt=8.0, shuffled=True, seed=seed) for seed in range(5)]
    found = [auroc(BY_NAME[name].risks(draw).values, draw.wrong).value for draw in draws]
    assert np.mean(found) == pytest.approx(0.5, abs=0.07)


def test_more_queries_a_tool_make_better_means():
    """Three noisy states a tool are a poorer mean than all of them."""
    evidence = made_evidence(noise=2.0)
    few, many = (
        auroc(BY_NAME[name].risks(evidence).values, evidence.wrong).value
        for name in ("cosine_3", "cosine")
    )
    assert few < many


def test_a_tool_without_a_mean_cannot_be_read():
    """A chosen tool that no right call of the other folds has is not compared."""
    evidence = made_evidence(60)
    lone = made_call(99, names=("lone", "search"), scores=(-0.1, -2.0),
                     state=evidence.calls[0].state)  # fmt: skip
    calls = [*evidence.calls, lone]
    folds = fold_calls([call.judged.record for call in calls], seed=0)
    found = BY_NAME["cosine"].risks(VoteEvidence(calls=calls, folds=folds))
    assert found.unreadable == 1
    assert found.values[-1] == math.inf


def test_a_probe_finds_a_direction_that_tells():
    """A coordinate that rises with the error rate is found among many that do not."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(400, 30))
    wrong = rng.random(400) < 1 / (1 + np.exp(-3 * features[:, 7] + 1))
    fitted = fit_logistic(features[:300], wrong[:300], 0.1)
    assert int(np.abs(fitted.weights).argmax()) == 7
    assert auroc(fitted.log_odds(features[300:]), wrong[300:]).value > 0.8


def test_a_probe_needs_both_outcomes():
    """Calls that are all right hold nothing to fit to."""
    with pytest.raises(CalibrationError, match="both right and wrong"):
        fit_logistic(np.ones((4, 2)), np.zeros(4, dtype=bool), 1.0)


def test_a_feature_that_never_varies_does_no_harm():
    """A dead coordinate of the state is passed over, not divided by zero."""
    features = np.array([[0.0, 5.0], [1.0, 5.0], [0.1, 5.0], [0.9, 5.0]])
    fitted = fit_logistic(features, np.array([False, True, False, True]), 1.0)
    assert fitted.weights[1] == 0.0
    assert np.isfinite(fitted.log_odds(features)).all()


def test_noise_is_given_the_strongest_penalty():
    """The choice of the penalty looks at folds that the fit did not see."""
    rng = np.random.default_rng(0)
    features, wrong = rng.normal(size=(200, 60)), rng.random(200) < 0.3
    folds = np.arange(200) % 4
    assert choose_penalty(features, wrong, folds) == min(PENALTIES)
    telling = np.where(wrong, 1.0, -1.0)[:, None] + 0.5 * rng.normal(size=(200, 3))
    assert choose_penalty(telling, wrong, folds) == max(PENALTIES)


def test_random_risks_hang_on_the_seed_alone():
    """The floor that no vote may fall below is the same in every run."""
    evidence = made_evidence(50)
    one, two = (BY_NAME["random"].risks(evidence).values for _ in range(2))
    other = BY_NAME["random"].risks(replace(evidence, seed=1)).values
    assert one.tolist() == two.tolist() != other.tolist()


def test_measured_votes_stand_beside_the_baseline():
    """Every vote has its cost, n, what it cannot read, rates and a curve; it is plain JSON."""
    evidence = made_evidence(150)
    votes = choose_votes("entropy,lda,random,p_true")
    result = measure_votes(votes, evidence)
    json.dumps(result, allow_nan=False)
    assert list(result["signals"]) == ["logprob", "entropy", "lda", "p_true", "random"]
    assert set(result["against_logprob"]) == {"entropy", "lda", "p_true", "random"}
    for found in result["signals"].values():
        assert found["n"] == found["auroc"]["n"] == 150
        assert len(found["curve"]) <= 101
        assert found["curve"][-1]["coverage"] == 1.0
        assert found["curve"][-1]["risk"] == pytest.approx(evidence.wrong.mean())
    assert result["signals"]["p_true"]["unreadable"] == 150
    assert result["signals"]["p_true"]["auroc"]["value"] == 0.5
    assert result["signals"]["p_true"]["cost"]["prompts"] == 1
    assert result["against_logprob"]["random"]["auroc"]["high"] < 0
    assert result["argument_errors"] is None


def test_calls_that_cannot_be_read_weigh_on_a_vote():
    """A vote that reads only the calls it likes is not better for it."""
    evidence = made_evidence(150)
    known = [call if call.judged.wrong else replace(call, yes=-1.0) for call in evidence.calls]
    measured = measure_votes(choose_votes("p_true"), replace(evidence, calls=known))
    found = measured["signals"]["p_true"]
    assert found["unreadable"] == evidence.wrong.sum()
    assert found["auroc"]["value"] == 1.0  # refused calls come last, and all of them are wrong


def test_argument_errors_are_kept_apart_from_wrong_tools():
    """Only calls of a right tool count, and only their arguments are judged."""
    calls = [
        made_call(0, arguments={"city": "Rome"}, written=written(nll=0.1, city="Rome")),
        made_call(1, arguments={"city": "Rome"}, written=written(nll=0.9, city="Oslo")),
        made_call(2, right=1, arguments={}, written=written(nll=0.5, city="Rome")),
        made_call(3, written=WrittenCall(call=None, tokens=96, nll=None)),
    ]
    evidence = VoteEvidence(calls=calls, folds=None)
    risks = {name: BY_NAME[name].risks(evidence) for name in ("logprob", "nll")}
    found = argument_errors(evidence, risks)
    assert (found["n"], found["n_wrong"]) == (2, 1)
    assert found["auroc"]["nll"]["value"] == 1.0
    assert found["auroc"]["logprob"]["value"] == 0.5
    assert argument_errors(replace(evidence, with_arguments=False), risks) is None


def test_the_lens_is_reported_block_by_block():
    """Each block's agreement with the choice, apart for right and wrong calls."""
    lenses = [torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 2.0]), None]
    table = lens_by_block(lenses, np.array([False, True, True]))
    assert [row["block"] for row in table] == [0, 1]
    assert table[0]["agrees_when_right"]["value"] == 1.0
    assert table[0]["agrees_when_wrong"]["value"] == 0.0
    assert table[0]["auroc"]["value"] == 1.0
    assert table[1]["auroc"]["value"] == 0.5
    assert lens_by_block([None], np.array([True])) == []
