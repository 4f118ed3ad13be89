"""The guarantee on repeated splits of real calls, under a shift, and tier by tier."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic_calls import made_calls

from toolguard.calibration.datasets.records import Record
from toolguard.calibration.fitting.fit_input import FitOptions
from toolguard.calibration.fitting.fit_profile import fit_profile
from toolguard.calibration.guarantee.check import GuaranteeOptions, measure_guarantee
from toolguard.calibration.guarantee.split_draws import (
    SplitCalls,
    conformal_threshold,
    random_parts,
    spread,
    verify_guarantee,
)
from toolguard.calibration.guarantee.table import broken_targets, guarantee_table
from toolguard.calibration.labels.judged_calls import JudgedCall
from toolguard.guard.errors import CalibrationError, ConfigError, ShapeError
from toolguard.guard.policy import Policy

FEW = GuaranteeOptions(splits=20, windows=(50,), repeats=20)


def drawn(n, *, seed=0, groups=None):
    """Calls whose P(wrong) is the very chance they were drawn with."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(0.5, 4, size=n)
    return SplitCalls.of(chance, rng.random(n) < chance, range(n) if groups is None else groups)


@pytest.mark.parametrize("target", [0.05, 0.1])
def test_a_threshold_keeps_its_target(target):
    """Where the truth is known the target is exceeded in at most 5 % of 200 draws."""
    found = verify_guarantee(drawn(2000), target=target, splits=200)
    assert found["kept"]
    assert found["exceeded_known"]["value"] <= 0.05
    assert found["exceeded_known"]["n"] == found["exceeded"]["n"] == 200
    assert found["found"]["value"] > 0.9
    assert 0 < found["realised"]["value"] < target


def test_the_other_part_exceeds_a_target_in_few_splits():
    """Over 20 sets of calls and 20 splits each, its error rate is above in about 3 % of them."""
    shares = [
        verify_guarantee(drawn(800, seed=seed), target=0.05, splits=20)["exceeded"]["value"]
        for seed in range(20)
    ]
    assert np.mean(shares) <= 0.05


def test_a_promise_with_little_confidence_is_broken_more_often():
    """The check can fail: at a confidence of one half the target is exceeded in many splits."""
    bold = verify_guarantee(drawn(1200), target=0.05, confidence=0.5, splits=100)
    assert bold["exceeded_known"]["value"] > 0.05
    assert bold["exceeded"]["value"] > 0.05


def test_where_nothing_can_be_promised_nothing_is_broken():
    """Too few calls for any threshold: none is found, none exceeded, no rate made up."""
    found = verify_guarantee(drawn(60), target=0.01, splits=10)
    assert found["found"]["value"] == 0
    assert (found["exceeded"]["value"], found["kept"]) == (0, True)
    assert found["coverage"]["value"] is found["realised"]["value"] is None


def test_conformal_risk_control_holds_on_average_and_not_among_the_allowed():
    """Its promise is about all calls: the mean is kept, the rate among allowed ones exceeds."""
    found = verify_guarantee(drawn(800), target=0.05, splits=200)["conformal"]
    assert found["harm"]["value"] <= 0.052  # 200 splits tell the mean to about .001
    assert found["exceeded"]["value"] > 0.2


def test_the_conformal_threshold_is_the_counted_one():
    """Of nine calls at a target of .2, (k + 1) / 10 <= .2 leaves room for one wrong call."""
    scores = np.arange(1, 10) / 10
    wrong = np.isin(np.arange(9), (3, 5, 8))
    assert conformal_threshold(scores, wrong, target=0.2) == np.nextafter(0.6, 0)
    assert conformal_threshold(scores, wrong, target=0.05) is None
    assert conformal_threshold(scores, wrong, target=0.4) == 1.0
    # Ties with the first call that is one too many stay out, all of them.
    assert conformal_threshold([0.5, 0.5, 0.1], [True, True, False], target=0.25) < 0.5


def test_near_duplicates_stay_on_one_side():
    """A group is never cut, and both parts have one."""
    groups = np.repeat(np.arange(7), 3)
    for first in random_parts(groups, 20, 0.5, seed=0):
        assert all(first[groups == g].all() == first[groups == g].any() for g in range(7))
        assert first.any()
        assert not first.all()
    assert all(p.any() and not p.all() for p in random_parts(np.arange(2), 3, 0.01, seed=0))


def test_the_same_seed_gives_the_same_splits():
    """The check is a function of calls, options and seed."""
    calls = drawn(200)
    assert verify_guarantee(calls, target=0.2, splits=5, seed=1) == verify_guarantee(
        calls, target=0.2, splits=5, seed=1
    )


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: SplitCalls.of([0.1, 0.2], [True, False], [1]), ShapeError),
        (lambda: SplitCalls.of([0.1, 0.2], [True, False], [1, 1]), CalibrationError),
        (lambda: SplitCalls.of([0.1, np.nan], [True, False], [1, 2]), CalibrationError),
        (lambda: verify_guarantee(drawn(50), target=0.1, splits=0), CalibrationError),
        (lambda: verify_guarantee(drawn(50), target=0.1, chosen_on=1.0), CalibrationError),
        (lambda: GuaranteeOptions(splits=0), ConfigError),
        (lambda: GuaranteeOptions(chosen_on=0), ConfigError),
        (lambda: GuaranteeOptions(windows=(100, 20)), ConfigError),
    ],
)
def test_what_cannot_be_split_is_refused(make, error):
    """Each hopeless input has a typed error."""
    with pytest.raises(error):
        make()


def test_a_spread_without_a_value_is_unknown():
    """Splits without a threshold have no error rate to average."""
    assert spread([None, None]).value is None
    assert spread([0.1, None, 0.3]).value == pytest.approx(0.2)


@pytest.fixture(scope="module")
def profile():
    """A profile of made-up calls, with thresholds for targets a policy asks; do not change it."""
    return fit_profile(made_calls(1600), FitOptions(signals=("logprob",), targets=(0.03,)))


def judged(n, *, seed, tool="tool_0", error=0.02, shift=0.0, trusted=True):
    """Calls of one tool; the safer half is wrong with chance `error`, the other ten times more."""
    rng = np.random.default_rng(seed)
    safe = rng.random(n) < 0.5
    wrong = rng.random(n) < np.where(safe, error, 10 * error)
    found = []
    for i in range(n):
        record = Record.model_validate(
            {
                "id": f"{seed}-{i}",
                "source": "made",
                "split": "all",
                "query": " ".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 12)),
                "tools": [{"name": tool}],
                "call": {"name": tool},
            }
        )
        margin = float(rng.normal(4.0 if safe[i] else 0.0)) - shift
        found.append(
            JudgedCall(
                record=record,
                chosen=tool,
                wrong=bool(wrong[i]),
                readout_right=None,
                margins={"logprob": margin} | ({"activation": margin} if trusted else {}),
                p_wrong=0.01 if safe[i] else 0.3,
                trusted=trusted,
            )
        )
    return found


def test_a_shift_breaks_thresholds_and_is_noticed(profile):
    """Calls from elsewhere that are wrong more often exceed the targets, and the test alarms."""
    found = measure_guarantee(
        profile,
        judged(300, seed=1, error=0.005),
        judged(300, seed=2, error=0.08, shift=3.0),
        GuaranteeOptions(splits=20, windows=(50, 100), repeats=40),
    )
    assert [row["target"] for row in found["splits"]] == [0.01, 0.02, 0.03, 0.05, 0.1, 0.2]
    same = {row["target"]: row for row in found["thresholds"]["same"]}
    shifted = {row["target"]: row for row in found["thresholds"]["shifted"]}
    assert same[0.2]["broken"] is False
    assert shifted[0.2]["broken"] is True
    drift = found["drift"]
    assert (drift["signals"], drift["of"]) == (["activation", "logprob"], "vouched")
    assert [row["window"] for row in drift["windows"]] == [50, 100]
    assert all(row["false_alarm"]["value"] <= 0.05 for row in drift["windows"])
    assert drift["windows"][1]["detected"]["value"] > 0.9
    assert drift["all_calls"]["shifted"] == "alarm"
    json.dumps(found, allow_nan=False)


def test_unknown_tools_are_not_allowed_and_would_break_the_target(profile):
    """The guard lets none of them run; had it vouched for them, the thresholds would not hold."""
    found = measure_guarantee(
        profile, judged(200, seed=3), judged(300, seed=4, error=0.09, trusted=False), FEW
    )
    assert found["vouched"] == {"same": 200, "shifted": 0}
    assert {row["coverage"]["value"] for row in found["thresholds"]["shifted"]} == {0.0}
    assert {row["broken"] for row in found["thresholds"]["shifted"]} == {None}
    assert found["thresholds"]["shifted_if_vouched"][-1]["broken"] is True
    assert (found["drift"]["signals"], found["drift"]["of"]) == (["logprob"], "all")
    assert found["drift"]["all_calls"]["shifted"] == "too_few"


def test_each_tier_is_measured_on_its_own_tools(profile):
    """A tier's target, its threshold, and what that lets through among the tier's own calls."""
    policy = Policy.load(
        {
            "tiers": {"read": {"risk_target": 0.1}, "write": {"risk_target": 0.03}},
            "tools": {"tool_0": {"tier": "read"}, "tool_1": {"tier": "write"}},
        }
    )
    calls = [*judged(200, seed=5), *judged(100, seed=6, tool="tool_1", error=0.0)]
    found = measure_guarantee(profile, calls, [], FEW, policy)
    tiers = {row["tier"]: row for row in found["tiers"]}
    assert (tiers["read"]["target"], tiers["write"]["target"]) == (0.1, 0.03)
    assert tiers["write"]["threshold"] == profile.threshold(0.03)
    assert tiers["read"]["same"]["coverage"]["n"] == 200
    assert tiers["write"]["same"]["coverage"]["n"] == 100
    assert tiers["write"]["same"]["realised"]["value"] == 0
    assert tiers["irreversible"]["same"]["coverage"]["value"] is None
    assert tiers["irreversible"]["target"] == profile.meta.requested_risk.target
    assert tiers["irreversible"]["pooled"] is tiers["irreversible"]["own"] is None
    assert tiers["write"]["pooled"]["calls"] == tiers["write"]["own"]["calls"] == 100


def test_a_threshold_from_all_tools_may_break_the_target_of_a_hard_tier():
    """The promise is about all calls together; a tier that is wrong more often needs its own."""
    rng = np.random.default_rng(0)
    hard = np.arange(2000) % 5 == 0
    chance = rng.random(2000) * 0.2
    wrong = rng.random(2000) < np.where(hard, 4 * chance, chance / 2)
    calls = SplitCalls.of(chance, wrong, range(2000))
    pooled = verify_guarantee(calls, target=0.1, splits=60, measured=hard)
    assert verify_guarantee(calls, target=0.1, splits=60)["kept"]
    assert not pooled["kept"]
    assert pooled["calls"] == 400
    own = verify_guarantee(calls.only(hard), target=0.1, splits=60)
    assert own["kept"]
    assert own["coverage"]["value"] < pooled["coverage"]["value"]


def test_the_table_says_what_was_found(profile):
    """Every section has its title, and a broken target is marked."""
    policy = Policy.load({"preset": "strict"})
    found = measure_guarantee(
        profile, judged(120, seed=7), judged(120, seed=8, error=0.1, trusted=False), FEW, policy
    )
    counts = {"calls": 120, "wrong": 9, "leaked": 0, "skipped": 0, "without_call": 0}
    text = "\n".join(guarantee_table({**found, "data": {"same": counts, "shifted": counts}}))
    for words in (
        "20 splits",
        "conformal risk control",
        "on fresh calls",
        "on shifted calls",
        "if it vouched for all their tools",
        "too many",
        "each tier's own tools",
        "irreversible",
        "drift test of logprob at 0.001",
        "shifted calls: too few",
        "few are of tools it vouches for",
    ):
        assert words in text
    assert not any(len(line) > 160 for line in text.splitlines())


def test_a_target_that_is_not_kept_is_named():
    """The command fails by these; a target that is kept is not among them."""
    rows = [{"target": 0.05, "kept": True}, {"target": 0.1, "kept": False}]
    assert broken_targets({"splits": rows}) == [0.1]


def test_a_profile_that_vouches_for_none_of_the_calls_cannot_be_checked(profile):
    """Calls of unknown tools alone say nothing about a threshold."""
    with pytest.raises(CalibrationError, match="only 0 of 30 calls"):
        measure_guarantee(profile, judged(30, seed=9, trusted=False), [], FEW)


def test_a_record_in_both_kinds_is_refused(profile):
    """A shift is not measured against calls that it holds itself."""
    calls = judged(60, seed=11)
    with pytest.raises(CalibrationError, match="3 records are in both kinds") as caught:
        measure_guarantee(profile, calls, [*judged(60, seed=12), *calls[:3]], FEW)
    assert caught.value.fields["records"] == ("11-0", "11-1", "11-2")


def test_a_call_without_a_probability_is_not_allowed(profile):
    """What the guard could not judge counts as refused, in the same way."""
    calls = judged(100, seed=10)
    unread = [replace(call, p_wrong=None) for call in calls[:40]]
    found = measure_guarantee(profile, [*calls[40:], *unread], [], FEW)
    assert found["vouched"]["same"] == 60
    # A threshold of 1 allows all that can be judged, and no more.
    last = found["thresholds"]["same"][-1]
    assert last["threshold"] == 1.0
    assert last["coverage"]["value"] == 0.6
