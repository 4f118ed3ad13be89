"""`toolguard evaluate` and `toolguard check` on a tiny random model: keys, exclusions, errors."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from made_data import labelled, random_agent, tools, unlabelled, write

from toolguard.calibration.cli import toolguard
from toolguard.calibration.commands.evaluate import table

RATE = {"value", "low", "high", "n"}


def evaluated(profile, model, data, steering):
    """Run evaluate with JSON on stdout."""
    found = ("--profile", profile, "--model", model, "--data", data)
    return run("evaluate", *found, "--steering", steering, "--json", "-")


def run(*args):
    return CliRunner().invoke(toolguard, [*map(str, args)], prog_name="toolguard")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
def profile(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    data = write(folder / "fit.jsonl", labelled(model, unlabelled(120, seed=1)))
    done = run("calibrate", "--model", model, "--data", data, "--out", folder / "profile")
    assert done.exit_code == 0, done.output
    return folder / "profile"


@pytest.fixture(scope="module")
def fresh(model, tmp_path_factory):
    rows = [*labelled(model, unlabelled(60, seed=9)), *unlabelled(5, seed=10)]
    return write(tmp_path_factory.mktemp("fresh") / "records.jsonl", rows)


@pytest.fixture(scope="module")
def result(model, profile, fresh):
    done = run(
        "evaluate",
        "--profile",
        profile,
        "--model",
        model,
        "--data",
        fresh,
        "--steering",
        12,
        "--json",
        "-",
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_promised_keys_are_there_with_intervals(result):
    """Every key of the report exists, and every rate is a value with its interval and n."""
    assert result["n"] == 60
    assert set(result["accuracy"]) >= {"model", "readout"}
    for signal in ("logprob", "activation", "combined"):
        keys = {"auroc", "aurc", "error_low_quartile", "error_high_quartile", "error_ratio"}
        assert keys <= set(result["signals"][signal])
        assert all(set(result["signals"][signal][key]) == RATE for key in keys)
    assert set(result["risk"]) >= {"target", "confidence", "threshold", "coverage", "realised"}
    for method in ("mean_difference", "unembedding_row", "random", "redirect"):
        assert set(result["steering"][method]) >= {"n", "switched", "schema_valid"}
        assert result["steering"][method]["n"] == 12
    assert set(result["no_call"]) >= {"n", "called"}


def test_whole_turns_are_checked_fault_by_fault(result):
    """Every turn is right or has one fault, and each kind has its own rate."""
    turns = result["turns"]
    assert turns["n"] == 60
    assert sum(rate["value"] for rate in turns["outcomes"].values()) == pytest.approx(1)
    assert {"wrong_tool", "wrong_arguments", "missing_call"} <= set(turns["outcomes"])
    assert turns["by_source"]["made"]["n"] == 60


def test_the_default_votes_are_those_that_cost_nothing(result):
    """Each vote has its cost, what it cannot read and a curve, and stands beside log-prob."""
    assert {"logprob", "first_token", "entropy", "logit_lens", "lda", "random"} <= set(
        result["signals"]
    )
    for found in result["signals"].values():
        assert (found["cost"]["prompts"], found["cost"]["tokens"]) == (0, 0)
        assert found["n"] == 60
        assert found["unreadable"] <= 60
        assert 1 < len(found["curve"]) <= 101
    assert set(result["against_logprob"]) == set(result["signals"]) - {"logprob"}
    assert len(result["lens_by_block"]) == 3


def test_votes_that_write_are_measured_on_request(model, profile, fresh):
    """Sampling, asking and writing the call out are votes like any other, with their cost."""
    done = run(
        *("evaluate", "--profile", profile, "--model", model, "--data", fresh, "--limit", 30),
        *("--steering", 0, "--no-call", 0, "--json", "-", "--samples", 2, "--temperature", 0.5),
        *("--votes", "nll,call_length,self_consistency,p_true"),
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    signals = found["signals"]
    assert next(iter(signals)) == "logprob"
    assert set(signals) == {"logprob", "nll", "call_length", "self_consistency", "p_true"}
    assert signals["p_true"]["unreadable"] == signals["self_consistency"]["unreadable"] == 0
    assert signals["self_consistency"]["cost"]["tokens"] > 0
    assert found["argument_errors"]["n"] <= found["n"] - found["n_wrong"]


def test_the_table_says_what_votes_cost(model, profile, fresh):
    """For people: every vote with its difference to log-prob, and what it takes."""
    done = run(
        *("evaluate", "--profile", profile, "--model", model, "--data", fresh, "--limit", 30),
        *("--steering", 0, "--no-call", 0, "--votes", "entropy,p_true"),
    )
    assert done.exit_code == 0, done.output
    assert "minus logprob" in done.stdout
    assert "one more prompt, with a question at its end" in done.stdout
    assert "first_token" not in done.stdout
    assert "calls of the rarer kind are too few" in done.stdout
    # What was not asked for is not in the table.
    for heading in ("steering", "queries without a right call"):
        assert heading not in done.stdout


def test_votes_that_rank_better_are_named(result):
    """With ten errors and more the table ends the comparison with who beats log-prob."""
    none, certain = ({"value": 0.0, "low": -1.0, "high": high, "n": 60} for high in (0.0, -0.1))
    made = result | {"against_logprob": {
        name: found | {"aurc": certain if name == "entropy" else none}
        for name, found in result["against_logprob"].items()
    }}  # fmt: skip
    assert "rank better than logprob at equal coverage: entropy\n" in table(made)


def test_a_vote_that_does_not_exist_is_refused(model, profile, fresh):
    """A mistyped vote ends the command before the model is read, naming the votes there are."""
    done = run(
        *("evaluate", "--profile", profile, "--model", model, "--data", fresh),
        *("--votes", "logprop"),
    )
    assert done.exit_code == 2
    assert "no vote is called logprop" in done.output
    assert "self_consistency" in done.output


def test_wrong_is_the_greedy_choice_against_the_label(result):
    """One record in six was labelled with another tool than the model chooses."""
    assert result["n_wrong"] == 10
    assert result["accuracy"]["model"]["value"] == pytest.approx(50 / 60)


def test_a_redirect_always_switches(result):
    """Forcing the target's name is the upper bound that steering is compared with."""
    assert result["steering"]["redirect"]["switched"]["value"] == 1.0


def test_records_without_a_call_are_counted_apart(result):
    """They are generated freely and are no part of n."""
    assert result["no_call"]["n"] == 5


def test_what_calibration_saw_is_left_out(model, profile):
    """Evaluating on the calibration's own file leaves the test split alone."""
    data = profile.parent / "fit.jsonl"
    done = run(
        "evaluate",
        "--profile",
        profile,
        "--model",
        model,
        "--data",
        data,
        "--steering",
        0,
        "--json",
        "-",
    )
    found = json.loads(done.stdout)
    assert found["leaked"] == 90
    assert found["n"] == 30


def test_bad_records_are_told_although_nothing_is_left(model, profile, tmp_path):
    """Where every record is bad the command fails, and says first which ones and why."""
    data = tmp_path / "bad.jsonl"
    data.write_text('{"id": "bad"}\n')
    done = evaluated(profile, model, data, steering=0)
    assert done.exit_code == 2
    told, _, error = done.stderr.partition("no record is left to evaluate")
    assert "problems in the data: 1" in told
    assert "bad.jsonl:1: " in told
    assert error


def test_the_table_is_for_people(model, profile, fresh):
    """Without --json the result is a table on stdout."""
    done = run("evaluate", "--profile", profile, "--model", model, "--data", fresh, "--steering", 0)
    assert done.exit_code == 0
    assert "AUROC" in done.stdout
    assert "60 calls, 10 wrong" in done.stdout


def test_check_reads_one_decision(model, profile):
    """The table names the tools of the profile's menu, the margin, P(wrong) and the action."""
    done = run("check", "--profile", profile, "--model", model, "--query", "rain in Rome")
    assert done.exit_code == 0, done.output
    assert "P(wrong)" in done.stdout
    assert "the policy would" in done.stdout
    assert "tool_decision" not in done.output


def test_check_takes_messages_tools_and_a_policy(model, profile, tmp_path):
    """A denied tool is vetoed; --json - gives the scores of every tool."""
    offered = write(tmp_path / "tools.json", [tools(["get_time"])])
    turns = write(tmp_path / "messages.json", [[{"role": "user", "content": "the time please"}]])
    policy = tmp_path / "policy.yaml"
    policy.write_text("mode: enforce\ntools: {get_time: {rule: deny}}\n")
    done = run(
        *("check", "--profile", profile, "--model", model, "--messages", turns),
        *("--tools", offered, "--policy", policy, "--json", "-"),
    )
    found = json.loads(done.stdout)
    assert found["action"] == "veto"
    assert set(found["scores"]["logprob"]) == {"get_time"}


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["evaluate", "--profile", "nowhere"], 2, "nowhere"),
        (["check", "--profile", "nowhere", "--query", "x"], 2, "nowhere"),
        (["check", "--profile", "PROFILE"], 2, "either --query or --messages"),
        (["check", "--profile", "PROFILE", "--query", " "], 2, "it is empty"),
        (
            ["check", "--profile", "PROFILE", "--query", "x", "--tools", "missing.json"],
            2,
            "missing.json",
        ),
        (
            ["check", "--profile", "PROFILE", "--query", "x", "--policy", "missing.yaml"],
            2,
            "missing.yaml",
        ),
    ],
)
def test_mistakes_are_told_without_a_traceback(model, profile, fresh, args, code, words):
    """Missing files and missing options exit with 2 and say what is missing."""
    args = [str(profile) if arg == "PROFILE" else arg for arg in args]
    extra = ["--data", fresh] if args[0] == "evaluate" else []
    done = run(*args, "--model", model, *extra)
    assert done.exit_code == code
    assert words in done.output
    assert "Traceback" not in done.output


def test_a_profile_of_another_model_is_refused(profile, fresh, tiny_folder):
    """The fingerprint says that the weights differ."""
    done = run("evaluate", "--profile", profile, "--model", tiny_folder, "--data", fresh)
    assert done.exit_code == 1
    assert "fingerprint" in done.output
