"""Corrections of flagged calls: which calls, which questions, what is counted, what is offered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import fake_profile

from toolguard.adapters.loading import load_model
from toolguard.adapters.wire import get_format
from toolguard.calibration.correction.choice import (
    MOST_READ,
    SelectCalls,
    choose_correction,
    with_correction,
)
from toolguard.calibration.correction.flagged import FlaggedCalls, flag_calls
from toolguard.calibration.correction.measurement import (
    CorrectionOptions,
    best_correction,
    measure_correction,
)
from toolguard.calibration.correction.methods import METHODS, REDIRECT, SERVED, targets_of
from toolguard.calibration.correction.questions import between_two, contrast, re_ask
from toolguard.calibration.correction.written_calls import written_outcomes
from toolguard.calibration.datasets.near_duplicates import query_fingerprint
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.labels.judged_calls import CallJudge, JudgedCall
from toolguard.calibration.reading.collect import Observation
from toolguard.guard.errors import CalibrationError
from toolguard.guard.profile import Profile

HERMES = get_format("hermes")
METHOD = {method.name: method for method in METHODS}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def record(menu, right="get_time", *, number=0, query="what time is it in Rome", **more):
    return Record(
        id=f"r{number}",
        source="made",
        split="all",
        query=query,
        tools=menu.tools,
        call={"name": right, "arguments": {"city": "Rome"}},
        **more,
    )


def flagged(menu, right="get_time", chosen="search", *, rival="get_time", number=0, **more):
    """Give a flagged call; by default it is wrong and its rival is right."""
    return JudgedCall(
        record=record(menu, right, number=number, **more),
        chosen=chosen,
        wrong=chosen != right,
        readout_right=None,
        margins={},
        p_wrong=0.9,
        trusted=True,
        runner_up=rival,
        rival=rival,
    )


def many(calls, *, read=100):
    return FlaggedCalls(calls=tuple(calls), threshold=0.3, read=read, unjudged=0)


@pytest.fixture(scope="module")
def profile(tiny_loaded, tiny_menu):
    """Give a profile whose threshold lets sure calls pass."""
    return fake_profile(tiny_loaded, tiny_menu, threshold=0.3)


def observed(profile, menu, chosen, *, towards=None, best=None, number=0):
    """Give what is read where the state and the log-probabilities point to these tools."""
    rows = torch.nn.functional.normalize(profile.means - profile.centre, dim=1)
    scores = torch.tensor([-9.0, -8.0, -7.0, -6.0, -5.0])
    scores[menu.names.index(best or chosen)] = -0.1
    hidden = profile.centre + rows[profile.names.index(towards or chosen)]
    return Observation(
        record_id=f"r{number}",
        query_hash=0,
        menu_names=menu.names,
        menu_hashes=tuple(tool.content_hash for tool in menu),
        label=None,
        right=frozenset(),
        chosen=menu.names.index(chosen),
        scores=scores,
        hidden=hidden[None],
    )


def flag(profile, seen, threshold):
    judge = CallJudge(profile)
    return flag_calls((judge.read(*one) for one in seen), threshold)


def test_only_doubtful_calls_are_flagged(profile, tiny_menu):
    """A sure call passes, one that both signals contradict does not."""
    sure = observed(profile, tiny_menu, "search")
    torn = observed(profile, tiny_menu, "search", towards="get_time", best="get_time", number=1)
    seen = [(record(tiny_menu), sure), (record(tiny_menu, number=1), torn)]
    found = flag(profile, seen, profile.threshold())
    assert (found.read, [call.record.id for call in found.calls]) == (2, ["r1"])
    (call,) = found.calls
    assert (call.chosen, call.runner_up, call.rival) == ("search", "get_time", "get_time")
    assert call.wrong
    assert call.p_wrong > 0.3


def test_without_a_threshold_every_judged_call_is_flagged(profile, tiny_menu):
    """Where nothing may run all calls are doubtful."""
    seen = [(record(tiny_menu), observed(profile, tiny_menu, "search"))]
    assert len(flag(profile, seen, None).calls) == 1


def test_signals_that_disagree_leave_no_rival(profile, tiny_menu):
    """A redirect needs both; a question takes the log-probability's runner-up."""
    seen = [
        (
            record(tiny_menu),
            observed(profile, tiny_menu, "search", towards="get_time", best="get_weather"),
        )
    ]
    (call,) = flag(profile, seen, None).calls
    assert (call.runner_up, call.rival) == ("get_weather", None)


def test_a_rival_that_nobody_vouches_for_is_none(tiny_loaded, tiny_menu):
    """As in the guard, an uncalibrated tool is no target; a call of one is not judged."""
    shy = fake_profile(tiny_loaded, tiny_menu, threshold=0.3, uncalibrated=("get_time",))
    seen = [
        (
            record(tiny_menu),
            observed(shy, tiny_menu, "search", towards="get_time", best="get_time"),
        ),
        (record(tiny_menu, number=1), observed(shy, tiny_menu, "get_time", number=1)),
    ]
    found = flag(shy, seen, None)
    assert found.unjudged == 1
    assert found.calls[0].rival is None


def test_a_sample_hangs_on_ids_and_seed_alone(tiny_menu):
    """The order of the records does not matter, the seed does."""
    calls = [flagged(tiny_menu, number=n) for n in range(40)]
    ids = [
        {call.record.id for call in many(order).sample(10, seed).calls}
        for order, seed in ((calls, 0), (calls[::-1], 0), (calls, 1))
    ]
    assert len(ids[0]) == 10
    assert ids[0] == ids[1] != ids[2]


def test_questions_never_carry_the_label(tiny_menu):
    """What is right stands in no field of a question, and the request is whole."""
    call = flagged(
        tiny_menu,
        rival="get_weather",
        accept=({"get_time": {"city": ["Rome"]}},),
    )
    for make in (between_two, contrast, re_ask):
        question = make(call)
        assert question.call is None
        assert question.right_names == frozenset()
        assert question.calls == question.accept == ()
        assert question.conversation[0]["content"].startswith(call.record.query)


def test_a_question_between_two_offers_only_these(tiny_menu):
    """The pair keeps the menu's order and the tools' own definitions."""
    question = between_two(flagged(tiny_menu, rival="get_weather"))
    assert question.menu.names == ("get_weather", "search")
    assert question.tools[0] is tiny_menu.get("get_weather")
    assert question.conversation == [{"role": "user", "content": "what time is it in Rome"}]


def test_a_contrast_tells_both_in_words(tiny_menu):
    """Names and descriptions stand behind the request; the menu is the pair."""
    question = contrast(flagged(tiny_menu, rival="get_weather"))
    said = question.conversation[-1]["content"]
    assert "get_weather: Weather of a city now." in said
    assert "search: Search the notes." in said
    assert question.menu.names == ("get_weather", "search")


def test_asking_again_keeps_the_menu_and_names_the_choice(tiny_menu):
    """The note says which tool may be wrong, under all tools."""
    question = re_ask(flagged(tiny_menu))
    assert question.menu.names == tiny_menu.names
    assert "The tool search was chosen" in question.conversation[-1]["content"]


def test_behind_a_tool_result_a_note_is_a_turn_of_its_own(tiny_menu):
    """What a tool said is not put into the user's mouth."""
    asked = {"role": "user", "content": "what time is it in Rome"}
    called = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "search", "arguments": {}}}],
    }
    result = {"role": "tool", "name": "search", "content": "nothing"}
    call = flagged(tiny_menu, messages=(asked, called, result))
    turns = re_ask(call).conversation
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "user"]
    assert turns[2]["content"] == "nothing"


def test_a_menu_of_one_leaves_nothing_to_ask(tiny_menu):
    """Without a runner-up there is no pair."""
    alone = flagged(tiny_menu, rival=None)
    assert between_two(alone) is contrast(alone) is None


def test_methods_end_at_the_tools_they_say(tiny_loaded, tiny_menu):
    """Keep keeps, redirect goes to the rival or leaves, a pair answers with one of the two."""
    calls = [
        flagged(tiny_menu),
        flagged(tiny_menu, rival=None, number=1),
        flagged(tiny_menu, rival="get_weather", number=2),
    ]
    ends = {name: targets_of(METHOD[name], calls, tiny_loaded, HERMES) for name in METHOD}
    assert ends["keep"] == {"r0": "search", "r1": "search", "r2": "search"}
    assert ends["redirect"] == {"r0": "get_time", "r2": "get_weather"}
    for name in ("between_two", "contrast"):
        assert set(ends[name]) == {"r0", "r2"}
        assert ends[name]["r2"] in {"search", "get_weather"}
    assert set(ends["re_ask"]) == {"r0", "r1", "r2"}
    assert set(ends["re_ask"].values()) <= set(tiny_menu.names)


def test_a_call_more_likely_right_may_be_left(tiny_loaded, tiny_menu):
    """P(wrong) of exactly a half is not more likely wrong, and an unlikely error is left alone."""
    calls = [
        replace(flagged(tiny_menu, number=n), p_wrong=p_wrong)
        for n, p_wrong in enumerate((0.4, 0.5, 0.6))
    ]
    ends = targets_of(METHOD["redirect_above_half"], calls, tiny_loaded, HERMES)
    assert ends == {"r2": "get_time"}
    assert len(targets_of(REDIRECT, calls, tiny_loaded, HERMES)) == 3


def test_a_question_that_is_too_long_leaves_its_call(tiny_loaded, tiny_menu):
    """The call keeps its own tool and is counted as left."""
    calls = [flagged(tiny_menu, query="word " * 5000), flagged(tiny_menu, number=1)]
    assert set(targets_of(METHOD["re_ask"], calls, tiny_loaded, HERMES)) == {"r1"}


def measured(loaded, profile, calls, **options):
    chosen = CorrectionOptions(new_tokens=0, **options)
    return measure_correction(loaded, HERMES, profile, many(calls), chosen, SERVED)


def test_fixed_and_broken_calls_are_counted_apart(tiny_loaded, tiny_menu, profile):
    """To the right tool fixes, away from it breaks, between two wrong ones does neither."""
    calls = [
        flagged(tiny_menu, number=0),
        flagged(tiny_menu, number=1),
        flagged(tiny_menu, right="search", number=2),
        flagged(tiny_menu, right="send_email", number=3),
        flagged(tiny_menu, rival=None, number=4),
    ]
    found = measured(tiny_loaded, profile, calls)
    redirect, keep = found["methods"]["redirect"], found["methods"]["keep"]
    assert (redirect["tool"]["fixed"], redirect["tool"]["broken"]) == (2, 1)
    assert redirect["tool"]["net"]["value"] == pytest.approx(0.2)
    assert redirect["tool"]["right"]["value"] == pytest.approx(0.4)
    assert (redirect["changed"], redirect["left"]) == (4, 1)
    assert (keep["tool"]["fixed"], keep["tool"]["broken"], keep["changed"]) == (0, 0, 0)
    assert keep["tool"]["right"]["value"] == pytest.approx(0.2)
    assert redirect["whole_call"]["net"]["value"] is None


def test_to_ask_the_user_costs_coverage(tiny_loaded, tiny_menu, profile):
    """Every flagged call stops, the right ones needlessly."""
    calls = [flagged(tiny_menu, right=right, number=n) for n, right in enumerate(["search"] * 3)]
    asked = measured(tiny_loaded, profile, [*calls, flagged(tiny_menu, number=9)])["clarify"]
    assert asked["coverage_lost"]["value"] == pytest.approx(0.04)
    assert asked["right_stopped"]["value"] == pytest.approx(0.75)
    assert asked["wrong_stopped"]["value"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("wrong", "right", "helps"),
    [(20, 0, "redirect"), (20, 4, "redirect"), (3, 0, None), (9, 9, None)],
)
def test_only_what_is_shown_to_help_is_named(tiny_loaded, tiny_menu, profile, wrong, right, helps):
    """A gain that three calls, or a draw, could give by chance is no reason."""
    calls = [flagged(tiny_menu, number=n) for n in range(wrong)]
    calls += [flagged(tiny_menu, right="search", number=100 + n) for n in range(right)]
    assert measured(tiny_loaded, profile, calls)["helps"] == helps


def told(lower, net, whole):
    return {"lower_of_all": lower, "tool": {"net": {"value": net}}, "whole_call": {"net": whole}}


def test_a_correction_that_loses_whole_calls_is_not_offered():
    """Right tools with wrong arguments are no gain; among those that help the largest counts."""
    three = [METHOD[name] for name in ("redirect", "contrast", "re_ask")]
    found = {
        "redirect": told(0.05, 0.1, {"value": 0.0}),
        "contrast": told(0.2, 0.3, {"value": -0.01}),
        "re_ask": told(0.01, 0.2, {"value": None}),
    }
    assert best_correction(found, three) == "re_ask"
    assert best_correction(found, three[:2]) == "redirect"
    assert best_correction(found, three[1:2]) is None


def test_among_equals_the_one_of_fewest_prompts_is_named():
    """A redirect costs no prompt, a question costs one."""
    equal = {name: told(0.1, 0.2, {"value": 0.0}) for name in ("contrast", "redirect")}
    assert best_correction(equal, [METHOD["contrast"], REDIRECT]) == "redirect"


def test_more_candidates_want_more_evidence(tiny_loaded, tiny_menu, profile):
    """The level is shared out, so a gain just shown alone is not shown among four."""
    calls = [flagged(tiny_menu, number=n) for n in range(7)]
    options = CorrectionOptions(new_tokens=0)
    alone = measure_correction(tiny_loaded, HERMES, profile, many(calls), options, SERVED)
    among = measure_correction(tiny_loaded, HERMES, profile, many(calls), options)
    assert alone["helps"] == "redirect"
    lower = [one["methods"]["redirect"]["lower_of_all"] for one in (alone, among)]
    assert lower[0] > 0 > lower[1]


def test_no_flagged_call_is_no_reason(tiny_loaded, tiny_menu, profile):
    """Nothing measured is undetermined, never NaN, and offers nothing."""
    found = measured(tiny_loaded, profile, [])
    assert found["helps"] is None
    assert found["methods"]["redirect"]["tool"]["net"]["value"] is None


def test_a_correction_is_never_chosen_on_test_queries(tiny_loaded, tiny_menu, profile):
    """A record whose query is held out stops the run with its id."""
    one = record(tiny_menu)
    select = SelectCalls.drawn(["r0"], frozenset({query_fingerprint(one.query)}), 0)
    with pytest.raises(CalibrationError, match="'r0' would choose a correction and test it"):
        select.flagged(profile, [one], [], [1])


def test_only_the_select_split_is_looked_at(profile, tiny_menu):
    """Observations of other records, and of other layers, play no part."""
    mine = observed(profile, tiny_menu, "search", towards="get_time", best="get_time")
    other = observed(profile, tiny_menu, "search", number=1)
    layers = [0, profile.meta.layer]
    read = [replace(one, hidden=torch.cat([one.hidden * 0, one.hidden])) for one in (mine, other)]
    select = SelectCalls.drawn(["r0"], frozenset(), 0)
    records = [record(tiny_menu), record(tiny_menu, number=1)]
    found = select.flagged(profile, records, read, layers)
    assert (found.read, [call.record.id for call in found.calls]) == (1, ["r0"])


def test_what_is_looked_at_is_bounded():
    """A large split is drawn from, by the seed and not by the order."""
    ids = [f"r{n}" for n in range(MOST_READ + 500)]
    one = SelectCalls.drawn(ids, frozenset(), 0)
    assert len(one.ids) == MOST_READ
    assert one.ids == SelectCalls.drawn(ids[::-1], frozenset(), 0).ids
    assert one.ids != SelectCalls.drawn(ids, frozenset(), 1).ids


def test_a_profile_keeps_its_correction(tiny_loaded, tiny_menu, profile, tmp_path):
    """What helps and what was measured are saved and loaded with it."""
    calls = many([flagged(tiny_menu, number=n) for n in range(20)])
    options = CorrectionOptions(new_tokens=0)
    report = choose_correction(tiny_loaded, HERMES, profile, calls, options)
    with_correction(profile, report).save(tmp_path)
    loaded = Profile.load(tmp_path)
    assert loaded.meta.correction == "redirect"
    assert loaded.meta.metrics["correction"]["methods"]["redirect"]["tool"]["fixed"] == 20
    assert set(report["methods"]) == {method.name for method in SERVED}


def test_whole_calls_are_written_before_anything_is_offered(tiny_loaded, tiny_menu, profile):
    """A random model writes no right call under any name: nothing is lost, and all are counted."""
    calls = many([flagged(tiny_menu, number=n) for n in range(8)])
    found = choose_correction(tiny_loaded, HERMES, profile, calls, CorrectionOptions(new_tokens=4))
    whole = found["methods"]["redirect"]["whole_call"]
    assert whole["outcomes"]["malformed"] == whole["net"]["n"] == 8


def test_a_name_is_all_in_a_format_without_arguments(tiny_loaded, tiny_menu):
    """What such a format cannot write is not held against it."""
    found = written_outcomes(
        tiny_loaded,
        get_format("name_only"),
        [(record(tiny_menu), "get_time"), (record(tiny_menu), "search")],
        on_skip=lambda _record, error: pytest.fail(str(error)),
    )
    assert found == {("r0", "get_time"): "right", ("r0", "search"): "wrong_tool"}


def test_a_forced_name_decides_what_is_written(tiny_menu):
    """The bundled agent fills in the tool it is given: right under the right name alone."""
    loaded = load_model("reference", device="cpu")
    tools = [
        {"name": "get_weather", "description": "Get the weather of a city.", "parameters": CITY},
        {"name": "get_time", "description": "Get the local time of a city.", "parameters": CITY},
    ]
    records = [
        Record.model_validate(
            {
                "id": city,
                "source": "made",
                "split": "all",
                "query": f"What is the weather in {city}?",
                "tools": tools,
                "call": {"name": "get_weather", "arguments": {"city": city}},
            }
        )
        for city in ("Paris", "London", "Berlin", "Rome")
    ]
    names = ("get_weather", "get_time")
    pairs = [(one, name) for one in records for name in names]
    found = written_outcomes(
        loaded, HERMES, pairs, on_skip=lambda _record, error: pytest.fail(str(error))
    )
    assert len(found) == len(pairs)
    assert any(found[one.id, "get_weather"] == "right" for one in records)
    assert {found[one.id, "get_time"] for one in records} <= {"wrong_tool", "malformed"}
