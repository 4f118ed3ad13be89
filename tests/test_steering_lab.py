"""The steering laboratory: who is steered, what counts as kept, and the whole comparison."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from fakes import fake_profile
from made_data import NAMES, labelled, random_agent, unlabelled, write

from toolguard.adapters.loading import load_model
from toolguard.adapters.wire import get_format
from toolguard.calibration.cli import CommandEntry, LazyGroup, toolguard
from toolguard.calibration.datasets.near_duplicates import query_fingerprint, query_fingerprints
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.measuring.rate_text import percent_text
from toolguard.calibration.reading.prompts import PromptWriter
from toolguard.calibration.steering_lab.lab_options import LabOptions, chosen_layers
from toolguard.calibration.steering_lab.lab_table import lab_table
from toolguard.calibration.steering_lab.laboratory import run_laboratory
from toolguard.calibration.steering_lab.pairs import Choice, draw_pairs, kind_of
from toolguard.calibration.steering_lab.settings import METHODS, Setting, checked_methods, grid
from toolguard.calibration.steering_lab.subjects import (
    Parts,
    part_records,
    sample_subjects,
    turns_of,
)
from toolguard.calibration.steering_lab.whole_calls import keeps_values, shared_arguments
from toolguard.guard.errors import CalibrationError, ConfigError, DatasetError
from toolguard.guard.profile import Profile
from toolguard.guard.trie import NameTrie

HERMES = get_format("hermes")
COMMAND = LazyGroup(
    entries={"steer-eval": CommandEntry("toolguard.calibration.commands.steer_eval", "Steer.")}
)


def record(index, query, name="get_time", **fields):
    fields.setdefault("tools", [{"name": tool} for tool in NAMES])
    call = {"name": name, "arguments": fields.pop("arguments", {})}
    return Record(id=f"r{index}", source="s", split="t", query=query, call=call, **fields)


# --- who is steered


def test_what_calibration_saw_gives_the_means_and_is_never_steered():
    """Donors are the seen queries; a near duplicate of one is steered no more than itself."""
    seen = record(0, "please tell me what the weather will be in Rome on the next Sunday")
    twin = record(1, "please tell me what the weather will be in Rome on the next Monday Sunday")
    other = record(2, "wake me at seven")
    parts = part_records(
        [seen, twin, other], query_fingerprints([seen.query]), donors_a_tool=9, seed=0
    )
    assert [r.id for r in parts.donors] == ["r0"]
    assert [r.id for r in parts.subjects] == ["r2"]
    assert (parts.seen, parts.near_duplicates) == (True, 1)


def test_data_that_calibration_never_saw_are_halved():
    """Half gives the means, half is steered, and no query does both."""
    records = [record(i, f"{word} number {i} for me") for i, word in enumerate("abcdefghij" * 4)]
    parts = part_records(records, frozenset(), donors_a_tool=100, seed=0)
    assert not parts.seen
    assert len(parts.donors) == pytest.approx(20, abs=4)
    assert len(parts.donors) + len(parts.subjects) + parts.near_duplicates == 40
    assert not {r.id for r in parts.donors} & {r.id for r in parts.subjects}


def test_a_query_on_both_sides_is_refused():
    """The assertion behind every number: what is steered is in no mean."""
    one, same = record(0, "What time is it?"), record(1, "what time is it")
    with pytest.raises(CalibrationError, match="1 queries would give the means and be steered"):
        Parts(donors=(one,), subjects=(same,), seen=True, near_duplicates=0)


def test_nothing_left_to_steer_is_an_error():
    """A file that calibration saw whole has no subject."""
    seen = record(0, "what time is it")
    fingerprints = frozenset({query_fingerprint(seen.query)})
    with pytest.raises(DatasetError, match="no record is left to steer"):
        part_records([seen], fingerprints, donors_a_tool=9, seed=0)


def test_donors_are_bounded_for_each_tool():
    """A common tool does not take longer to read than a rare one."""
    records = [record(i, f"question {i}", "search" if i < 12 else "get_time") for i in range(14)]
    fingerprints = query_fingerprints(r.query for r in records)
    fresh = record(99, "quite another thing")
    parts = part_records([*records, fresh], fingerprints, donors_a_tool=5, seed=0)
    called = [r.call.name for r in parts.donors]
    assert (called.count("search"), called.count("get_time")) == (5, 2)


def test_turns_are_told_apart_by_what_was_said_before():
    """A system text is nothing said; an earlier question is."""
    alone = record(0, "now")
    system = record(
        1, "now", messages=[{"role": "system", "content": "x"}, {"role": "user", "content": "now"}]
    )
    later = record(
        2,
        "now",
        messages=[
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "now"},
        ],
    )
    assert [turns_of(r) for r in (alone, system, later)] == ["single", "single", "multi"]
    assert sample_subjects([alone, later], "multi", 5, 0) == [later]


# --- pairs


def test_names_meet_in_three_ways():
    """Apart, apart with the target's first token shared by a third tool, and colliding."""
    trie = NameTrie({"a": (1, 9), "b": (2, 3, 9), "c": (2, 4, 9), "d": (5, 9)})
    assert kind_of(trie, "a", "d") == "apart"
    assert kind_of(trie, "b", "a") == "apart"
    assert kind_of(trie, "a", "b") == "crowded"
    assert kind_of(trie, "b", "c") == "colliding"


@pytest.fixture(scope="module")
def choices(tiny_menu):
    return [
        Choice(
            record=Record(
                id=f"c{i}",
                source="s",
                split="t",
                query=f"query {i}",
                tools=tiny_menu.tools,
                call={"name": "search"},
            ).with_menu(tiny_menu),
            chosen=tiny_menu.names[i % 5],
        )
        for i in range(10)
    ]


def test_every_prompt_is_used_once_before_one_is_used_twice(tiny_loaded, choices):
    """Ten prompts give ten pairs on ten prompts, and twenty no pair twice."""
    writer = PromptWriter(tiny_loaded, HERMES)
    ten, twenty = (draw_pairs(writer, choices, NAMES, most=most, seed=0) for most in (10, 20))
    assert len({pair.prompt.record.id for pair in ten}) == 10
    assert len({(pair.prompt.record.id, pair.target) for pair in twenty}) == 20
    assert all(pair.source != pair.target for pair in twenty)


def test_only_tools_with_a_mean_are_steered_to_and_from(tiny_loaded, choices):
    """The tool without a mean is no source and no target."""
    steerable = frozenset(NAMES) - {"search"}
    pairs = draw_pairs(PromptWriter(tiny_loaded, HERMES), choices, steerable, most=99, seed=0)
    assert pairs
    assert not {"search"} & {name for pair in pairs for name in (pair.source, pair.target)}


@pytest.mark.parametrize("kind", ["apart", "crowded", "colliding"])
def test_a_draw_of_one_kind_has_that_kind_alone(tiny_loaded, choices, kind):
    """The three kinds together are all pairs."""
    writer = PromptWriter(tiny_loaded, HERMES)
    pairs = draw_pairs(writer, choices, NAMES, most=999, seed=0, kind=kind)
    assert all(kind_of(p.prompt.trie, p.source, p.target) == kind for p in pairs)
    of_each = [
        draw_pairs(writer, choices, NAMES, most=999, seed=0, kind=k)
        for k in ("apart", "crowded", "colliding")
    ]
    assert sum(map(len, of_each)) == 40


# --- settings


def test_the_grid_has_each_setting_once():
    """Controls do not hang on a layer, and a direction is met at the norms that tell it apart."""
    found = grid(METHODS, (0, 1), (0.5, 1.0))
    assert len(found) == len(set(found))
    of = {method: [s for s in found if s.method == method] for method in METHODS}
    assert of["none"] == [Setting(method="none")]
    assert len(of["logit_bias"]) == 2
    assert len(of["mean_difference"]) == 4
    assert len(of["unembedding_row"]) == 8
    assert {s.norm for s in of["random"]} == {"matched"}


def test_an_unknown_method_is_refused():
    """The message lists what there is."""
    with pytest.raises(ConfigError, match="unknown steering method: mean_diff") as caught:
        checked_methods(["mean_diff"])
    assert "mean_difference" in str(caught.value)


def test_layers_are_spread_over_the_model_and_hold_the_profiles():
    """Six of many, all of few, and never without the layer that a guard reads."""
    assert chosen_layers(None, 4, 2) == (0, 1, 2, 3)
    assert chosen_layers(None, 36, 34) == (0, 7, 14, 21, 28, 34, 35)
    assert chosen_layers((5,), 36, 34) == (5, 34)
    with pytest.raises(ConfigError, match="from 0 to 3"):
        chosen_layers((4,), 4, 2)


# --- values


CITY = {"type": "object", "properties": {"city": {"type": "string"}, "day": {"type": "string"}}}


def test_values_are_compared_where_the_schemas_share_them():
    """Only the label's arguments that the target has too count, spelled as the checker allows."""
    made = record(0, "q", arguments={"city": "New York", "zone": "x"})
    assert shared_arguments(made, CITY) == {"city"}
    assert shared_arguments(made, {}) == frozenset()
    assert keeps_values({"city": "new york", "day": "Monday"}, made, frozenset({"city"}))
    assert not keeps_values({"city": "Boston"}, made, frozenset({"city"}))
    assert not keeps_values({"day": "Monday"}, made, frozenset({"city"}))


def test_accepted_values_stand_for_the_labels_own():
    """A record that lists alternatives is held to the list."""
    made = record(
        0, "q", arguments={"city": "NYC"}, accept=[{"get_time": {"city": ["NYC", "New York"]}}]
    )
    assert keeps_values({"city": "New York"}, made, frozenset({"city"}))
    assert not keeps_values({"city": "Boston"}, made, frozenset({"city"}))


# --- the whole: a random agent chooses, but cannot spell, so that `won` is what can be asked of it


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    return random_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
def rows(agent):
    """Give records under small menus, labelled with what the model chooses."""
    return labelled(agent, unlabelled(150, seed=4, menu_size=3), wrong_every=1000)


@pytest.fixture(scope="module")
def folder(agent, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steer")
    data = write(folder / "data.jsonl", rows)
    done = CliRunner().invoke(
        toolguard,
        ["calibrate", "--model", str(agent), "--data", str(data), "--out", str(folder / "profile")],
    )
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def result(agent, rows, folder):
    return run_laboratory(
        load_model(str(agent)),
        [HERMES, get_format("name_only")],
        Profile.load(folder / "profile"),
        [Record.model_validate(row) for row in rows],
        LabOptions(
            alphas=(1.0, 60.0),
            methods=checked_methods(
                ["none", "logit_bias", "redirect", "mean_difference", "gained_row", "random"]
            ),
            pairs=20,
            calls=6,
            new_tokens=16,
        ),
    )


def cells(result, kind, method, **wanted):
    (group,) = [
        g
        for g in result["groups"]
        if (g["format"], g["turns"], g["pairs"]) == ("hermes", "single", kind)
    ]
    return [
        cell
        for cell in group["cells"]
        if cell["method"] == method and all(cell[key] == value for key, value in wanted.items())
    ]


def test_the_result_is_plain_json_with_every_group(result):
    """Two formats, two kinds of turns, three kinds of pairs; each says n, and why where fewer."""
    assert json.loads(json.dumps(result)) == result
    assert len(result["groups"]) == 2 * 2 * 3
    for group in result["groups"]:
        assert group["n"] == 20 or group["why_fewer"]
        assert all(cell["switched"]["n"] == cell["n"] for cell in group["cells"])
        assert all(cell["n"] + cell["without_means"] == group["n"] for cell in group["cells"])
    multi = [g for g in result["groups"] if g["turns"] == "multi"]
    assert {g["why_fewer"] for g in multi} == {"the data hold no such prompts"}


@pytest.mark.parametrize("kind", ["apart", "crowded", "colliding"])
def test_nothing_switches_nobody_and_a_redirect_everybody(result, kind):
    """The two ends of the scale."""
    (none,) = cells(result, kind, "none")
    (redirect,) = cells(result, kind, "redirect")
    assert none["n"] > 0
    assert none["switched"]["value"] == none["won"]["value"] == 0.0
    assert redirect["switched"]["value"] == 1.0


def test_a_strong_push_along_the_row_at_the_last_block_decides(result):
    """Behind the last block only norm and unembedding follow: the row wins, noise does not."""
    (pushed,) = cells(result, "apart", "gained_row", norm="matched", layer=2, alpha=60.0)
    assert pushed["won"]["value"] > 0.8
    (noise,) = cells(result, "apart", "random", layer=2, alpha=60.0)
    assert noise["won"]["value"] < 0.2


def test_names_that_collide_are_won_where_they_part_alone(result):
    """No row or bias at the decision token can tell them apart; at the parting it can."""
    for method in ("logit_bias", "gained_row"):
        wanted = {"alpha": 60.0} | ({"norm": "matched", "layer": 2} if method[0] == "g" else {})
        if method == "gained_row":
            at_decision = cells(result, "colliding", method, place="decision", norm="matched")
        else:
            at_decision = cells(result, "colliding", method, place="decision")
        (parting,) = cells(result, "colliding", method, place="partings", **wanted)
        assert all(cell["won"]["value"] == 0.0 for cell in at_decision)
        assert parting["won"]["value"] > 0.8


def test_a_crowded_target_is_won_at_every_parting(result):
    """What is won at the decision token alone may be lost at the next one; pushed on, it is not."""
    (one,) = cells(result, "crowded", "logit_bias", place="decision", alpha=60.0)
    (all_of_them,) = cells(result, "crowded", "logit_bias", place="partings", alpha=60.0)
    assert all_of_them["won"]["value"] > 0.5
    assert all_of_them["won"]["value"] > one["won"]["value"] + 0.2


def test_whole_calls_are_counted_over_the_same_pairs(result):
    """A redirect writes the target's name; what follows from a random model is no call."""
    group = next(g for g in result["groups"] if g["format"] == "hermes" and g["n"])
    by_method = {cell["method"]: cell for cell in group["whole_calls"]}
    assert by_method["redirect"]["n"] == by_method["none"]["n"] == 6
    assert by_method["redirect"]["switched"]["value"] == 1.0
    assert by_method["redirect"]["parsed"]["value"] == 0.0
    assert all(g["whole_calls"] == [] for g in result["groups"] if g["format"] == "name_only")


def test_the_table_says_what_was_measured(result):
    """Every group has a heading; an undetermined rate is a dash."""
    text = lab_table(result)
    assert text.count("== ") == len(result["groups"])
    assert "redirect" in text
    assert "fewer than wanted: the data hold no such prompts" in text
    assert percent_text({"value": None, "low": None, "high": None, "n": 0}) == "-"
    assert percent_text({"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}) == "50.0 [25.0, 75.0]"


def test_a_layer_that_does_not_exist_is_an_error(agent, rows, tiny_loaded, tiny_menu):
    """Before anything is read."""
    profile = fake_profile(tiny_loaded, tiny_menu)
    with pytest.raises(ConfigError, match="from 0 to 2"):
        run_laboratory(
            load_model(str(agent)), [HERMES], profile, [], LabOptions(layers=(9,), pairs=1)
        )


def run(folder, agent, *args):
    found = ["--profile", folder / "profile", "--model", agent, "--data", folder / "data.jsonl"]
    return CliRunner().invoke(COMMAND, ["steer-eval", *map(str, [*found, *args])])


def test_the_command_writes_table_and_json(folder, agent):
    """With --json - the JSON is on stdout and the table on stderr."""
    few = ("--pairs", 3, "--calls", 0, "--alphas", "1", "--layers", "1", "--formats", "hermes")
    done = run(folder, agent, *few, "--methods", "none,gained_row", "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["bad_records"] == 0
    assert {cell["method"] for g in found["groups"] for cell in g["cells"]} == {
        "none",
        "gained_row",
    }
    assert "steering of" in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--methods", "push"), "unknown steering method: push"),
        (("--alphas", "1,x"), "--alphas 1,x: expected numbers"),
        (("--layers", "1.5"), "--layers 1.5: expected block indices"),
        (("--layers", "99"), "from 0 to 2"),
        (("--formats", "xml"), "unknown wire format 'xml'"),
    ],
)
def test_mistakes_are_told_without_a_traceback(folder, agent, args, words):
    """A wrong option ends with exit code 2 and says what is expected."""
    done = run(folder, agent, *args)
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output
