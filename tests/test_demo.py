"""The demo and the curated data set: what they write and print, on a tiny random model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import demo
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from demo_picture import draw
from demo_scenes import SCENES, Scene, block
from fakes import fake_profile, quiet_guard

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.turn_result import GuardedResult, JudgedCall
from toolguard.calibration.cli import toolguard
from toolguard.calibration.datasets.dataset import open_dataset
from toolguard.calibration.datasets.near_duplicates import query_fingerprint
from toolguard.calibration.datasets.own_data import write_curated
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.judged_calls import JudgedCall as ReadCall
from toolguard.calibration.training.catalog import base_menu, curated_queries
from toolguard.guard.decision import Decision, Reading
from toolguard.guard.errors import ConfigError
from toolguard.guard.policy import Policy
from toolguard.guard.tools import ToolCall

ROOT = Path(__file__).resolve().parents[1]
PNG = b"\x89PNG\r\n\x1a\n"


def run(*args):
    return CliRunner().invoke(toolguard, ["data", *map(str, args)], prog_name="toolguard")


def decided(action, tool="get_weather", target=None, p_wrong=0.25, threshold=0.125):
    return Decision(
        action=action,
        proposed=action,
        tool=tool,
        reason="doubtful",
        detail="said so",
        reading=Reading(menu=(tool,), chosen=tool, p_wrong=p_wrong),
        threshold=threshold,
        target=target,
    )


def turn(*decisions, calls=(), content="", finish_reason="stop", text=""):
    return GuardedResult(
        message={"role": "assistant", "content": content},
        calls=calls,
        judged=tuple(JudgedCall(decision=decision) for decision in decisions),
        text=text,
        tokens=(),
        prompt_tokens=0,
        finish_reason=finish_reason,
    )


def calls(count=40):
    """Make judged calls, every fourth one wrong and with the smaller margin."""
    record = Record(
        id="made",
        source="made",
        split="all",
        query="Rain?",
        tools=[{"name": "get_weather"}],
        call={"name": "get_weather"},
    )
    return [
        ReadCall(
            record=record,
            chosen="get_weather",
            wrong=index % 4 == 0,
            readout_right=None,
            margins={"logprob": 0.1 * index - (index % 4 == 0), "activation": 0.01 * index},
            p_wrong=1 / (2 + index),
            trusted=True,
        )
        for index in range(count)
    ]


def test_curated_data_are_the_curated_queries(tmp_path):
    """The folder holds every curated query once, with its call, under the base menu."""
    report = write_curated(tmp_path / "data")
    records = list(open_dataset(tmp_path / "data"))
    expected = [(item.query, tool, dict(item.arguments)) for tool, item in curated_queries()]
    assert [(r.query, r.call.name, r.call.arguments) for r in records] == expected
    assert (report.records, report.calls, report.menus, report.problems) == (500, 500, 1, ())
    assert set(Counter(r.call.name for r in records).values()) == {50}
    assert records[0].menu.schemas() == base_menu().schemas()


def test_curated_data_never_overwrite(tmp_path):
    """A folder that holds records already is left alone."""
    (tmp_path / "records.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        write_curated(tmp_path)
    assert (tmp_path / "records.jsonl").read_text() == "mine"


def test_the_curated_command_writes_what_validate_accepts(tmp_path):
    """The command says what it wrote, as text and as JSON, and the folder has no problem."""
    result = run("curated", "--out", tmp_path / "data", "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("500 records over one menu")
    assert json.loads((tmp_path / "report.json").read_text())["records"] == 500
    assert run("validate", tmp_path / "data").exit_code == 0


def test_the_curated_command_refuses_a_folder_in_use(tmp_path):
    """Writing twice into one folder is the user's to fix."""
    assert run("curated", "--out", tmp_path).exit_code == 0
    again = run("curated", "--out", tmp_path)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


@pytest.mark.slow
def test_the_demo_runs_from_data_to_picture(tiny_folder, tmp_path, capsys):
    """Every section is printed and every file is written, over those of an earlier run."""
    out = tmp_path / "demo"
    (out / "data").mkdir(parents=True)
    (out / "data" / "records.jsonl").write_text("{}")
    assert demo.main(["--model", str(tiny_folder), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for number, title in enumerate(demo.SECTIONS, start=1):
        assert f"== {number}. {title} ==" in text
    assert text.count("    query ") == len(SCENES)
    assert f"toolguard check --profile {out / 'profile'}" in text
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["leaked"] > 300
    assert evaluation["n"] + evaluation["leaked"] == 500
    assert (out / "margins.png").read_bytes().startswith(PNG)
    for line in (out / "decisions.jsonl").read_text().splitlines():
        assert json.loads(line)["event"] == "tool_decision"


def test_the_demo_reports_a_missing_model(tmp_path, capsys):
    """A folder that is not there ends with the command's message and exit code, no traceback."""
    with pytest.raises(SystemExit) as ended:
        demo.main(["--model", "./nowhere", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "there is no folder ./nowhere" in capsys.readouterr().err


def test_scenes_fit_the_menu_and_the_policy():
    """The policy lists the whole base menu, and scenes name its tools and no training query."""
    policy = Policy.load(ROOT / "examples" / "policy.yaml")
    assert policy.mode == "enforce"
    assert set(policy.tools) == set(base_menu().names)
    assert policy.tier_of("send_email") == "irreversible"
    assert policy.doubtful_action("send_email") == "veto"
    assert policy.rule_for("write_file") == "deny"
    assert policy.tier_of("get_weather") == "read"
    known = {item.query for _, item in curated_queries()}
    for scene in SCENES:
        assert set(scene.tools) <= set(base_menu().names)
        assert known.isdisjoint(scene.queries)


def test_the_changed_menu_changes_one_tool():
    """The scene of a changed tool offers another get_weather and leaves the others as they are."""
    [change] = [scene.change for scene in SCENES if scene.change]
    pairs = zip(base_menu(), change(base_menu()), strict=True)
    assert [old.name for old, new in pairs if old.content_hash != new.content_hash] == [
        "get_weather"
    ]


def test_a_scene_is_shown_by_outcome_and_tool():
    """A scene wants one of its outcomes, on one of its tools if it names any."""
    scene = Scene(title="t", wanted=("veto",), queries=("q",), tools=("send_email",))
    assert scene.shows(turn(decided("veto", "send_email")))
    assert not scene.shows(turn(decided("veto", "run_code")))
    assert not scene.shows(turn(decided("allow", "send_email")))
    silent = Scene(title="t", wanted=("no call",), queries=("q",))
    assert silent.shows(turn())


def test_a_block_tells_what_was_decided():
    """A vetoed call shows where its text ends and what would have run without the guard."""
    vetoed = turn(
        decided("veto"), finish_reason="guard", text='{"name": "get_weather', content="no"
    )
    alone = turn(
        decided("allow"), calls=(ToolCall(name="get_weather", arguments={"city": "Bonn"}),)
    )
    assert block("Rain?", vetoed, alone) == [
        "query     Rain?",
        "chosen    get_weather",
        "P(wrong)  0.250, allowed up to 0.125",
        "action    veto: said so",
        'written   "{\\"name\\": \\"get_weather" and nothing more',
        "message   no",
        'unguarded get_weather {"city": "Bonn"}',
    ]


def test_a_block_tells_of_redirects_unknowns_and_silence():
    """A redirect names its target, an unknown P(wrong) is called so, and no call is no tool."""
    decision = decided("redirect", target="search_web", p_wrong=None, threshold=None)
    lines = block("q", turn(decision, calls=(ToolCall(name="search_web"),)))
    assert lines[2:] == [
        "P(wrong)  unknown, nothing is allowed by evidence",
        "action    redirect to search_web: said so",
        "call      search_web {}",
    ]
    assert block("q", turn(content="a\n" + "b" * 200))[1:] == [
        "chosen    no tool",
        f"message   a {'b' * 98}...",
    ]


@pytest.mark.parametrize("threshold", [None, 0.2, 1e-9])
def test_the_picture_is_a_png(threshold, tmp_path):
    """The picture is drawn without a threshold to mark, with one, and with one that is too low."""
    path = tmp_path / "margins.png"
    assert draw(calls(), path, threshold)
    assert path.read_bytes().startswith(PNG)


def test_a_picture_of_right_calls_alone_is_drawn(tmp_path):
    """A model without an error still gets its picture; without a reading there is none."""
    right = [call for call in calls() if not call.wrong]
    assert draw(right, tmp_path / "right.png", 0.2)
    assert not draw([], tmp_path / "none.png", 0.2)
    assert not (tmp_path / "none.png").exists()


def test_readings_are_of_fresh_calls_alone(tiny_loaded: LoadedModel, tmp_path):
    """What took part in the calibration is not read again for the picture."""
    write_curated(tmp_path)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()[:6]
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    seen = [query_fingerprint(record.query) for record in open_dataset(tmp_path)][:4]
    signed = torch.from_numpy(np.array(seen, dtype=np.uint64).view(np.int64))
    profile = replace(fake_profile(tiny_loaded, base_menu()), seen=signed)
    profile.save(tmp_path / "profile")
    agent = GuardedAgent.of(tiny_loaded, quiet_guard(profile))
    found = demo.fresh_calls(agent, tmp_path / "profile", tmp_path)
    assert len(found) == 2
    assert all(0 <= call.p_wrong <= 1 for call in found)
