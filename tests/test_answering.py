"""Call or answer in calibration: labels, the gate's fit, its thresholds, and what is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_openings import made_openings

from toolguard.adapters.wire.detection import detect_format
from toolguard.calibration.answering.gate_calibration import (
    GateRisk,
    SplitOpenings,
    calibrate_gate,
    gate_metrics,
)
from toolguard.calibration.answering.gate_fit import FEWEST, fit_gate, gate_risks, kinds_in
from toolguard.calibration.answering.gate_run import silent_splits
from toolguard.calibration.answering.gate_table import gate_lines, survey_table
from toolguard.calibration.answering.giveaways import query_word_risks
from toolguard.calibration.answering.labels import next_step
from toolguard.calibration.answering.measurement import (
    cross_fitted_risks,
    measure_openings,
    refuse_shared,
)
from toolguard.calibration.answering.openings import Opening, read_openings
from toolguard.calibration.answering.operating_point import passed_at_kept
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.datasets.splits import (
    Split,
    SplitFractions,
    SplitItem,
    Splits,
    make_splits,
)
from toolguard.calibration.measuring.metrics import auroc
from toolguard.guard.errors import CalibrationError, ReadoutError
from toolguard.guard.tools import Menu

LAYERS = (3, 7)  # block indices of the two rows of a made state


def record(
    menu: Menu, *, call: str | None = None, tags: tuple[str, ...] = (), **more: Any
) -> Record:
    fields = {"id": "r", "source": "s", "split": "all", "query": "weather in Rome", **more}
    named = None if call is None else {"name": call, "arguments": {}}
    return Record.model_validate(
        {"tools": menu.tools if "tools" not in more else (), **fields, "call": named, "tags": tags}
    )


def split(seed: int = 0, **options: Any) -> SplitOpenings:
    """Give openings for the three splits, each with its own queries."""
    return SplitOpenings(
        of={
            "fit": made_openings(300, name="f", seed=seed, **options),
            "select": made_openings(600, name="s", seed=seed + 1, **options),
            "test": made_openings(300, name="t", seed=seed + 2, **options),
        },
        layers=LAYERS,
    )


def test_records_tell_what_is_right_to_do_next(tiny_menu: Menu) -> None:
    """A call, an answer, or a question where a parameter is missing; else a record is silent."""
    assert next_step(record(tiny_menu, call="search")) == "call"
    assert next_step(record(tiny_menu, tags=("abstain", "out_of_scope"))) == "answer"
    assert next_step(record(tiny_menu, tags=("abstain", "missing_parameter"))) == "ask"
    assert next_step(record(tiny_menu, tags=("when2call:request_for_info",))) == "ask"
    assert next_step(record(tiny_menu, tags=("attack",))) is None
    assert next_step(record(tiny_menu, tools=())) is None


def test_shared_prompts_read_as_whole_ones(tiny_loaded: Any, tiny_menu: Menu) -> None:
    """Openings read together equal those read one by one, equal and lone queries included."""
    wire = detect_format(tiny_loaded.tokenizer)
    queries = ["weather in Rome", "weather in Rome", "an alarm for seven", "mail"]
    records = [record(tiny_menu, id=f"r{i}", query=query) for i, query in enumerate(queries)]
    alone = Menu(tiny_menu.tools[:2])
    records.append(record(alone, id="lone", call="get_time"))
    recipes: list[dict[str, Any]] = [{}, {"share_prefix": False}, {"decisions": False}]
    reads = [
        {
            o.record_id: o
            for o in read_openings(
                tiny_loaded, wire, records, layers=[0, 2], on_skip=lambda *_: None, **options
            )
        }
        for options in recipes
    ]
    together, apart, short = reads
    assert set(together) == set(apart) == {one.id for one in records}
    for name, opening in together.items():
        whole = apart[name]
        assert opening.log_odds == pytest.approx(whole.log_odds, abs=1e-4)
        assert opening.prompt_tokens == whole.prompt_tokens
        assert (opening.hidden - whole.hidden).abs().max() < 1e-4
        assert (opening.decision - whole.decision).abs().max() < 1e-4
        assert (opening.hidden - opening.decision).abs().max() > 1e-3
        assert short[name].decision.shape[0] == 0
    assert together["lone"].step == "call"
    assert together["lone"].menu_size == 2


def test_the_layer_that_tells_is_found() -> None:
    """Cross-validation takes the block whose states differ, and the gate tells them apart."""
    gate = fit_gate(made_openings(), LAYERS)
    assert gate.section.layer == 7
    assert gate.kinds == ("answer", "ask")
    fresh = made_openings(seed=5, name="fresh")
    for kind in gate.kinds:
        own = [o for o in fresh if o.step in ("call", kind)]
        risks = gate_risks(gate, kind, own, LAYERS)
        unneeded = np.array([o.step == kind for o in own])
        assert (auroc(risks.activation, unneeded).value or 0) > 0.98
        assert (auroc(risks.logprob, unneeded).value or 0) < 0.65
        assert risks.combined.min() >= 0
        assert risks.combined.max() <= 1


def test_states_that_tell_nothing_leave_the_odds() -> None:
    """Where only the odds tell, the combination follows them."""
    gate = fit_gate(made_openings(apart=0.0, odds=6.0), LAYERS)
    fresh = [o for o in made_openings(seed=5, apart=0.0, odds=6.0) if o.step != "ask"]
    risks = gate_risks(gate, "answer", fresh, LAYERS)
    unneeded = np.array([o.step == "answer" for o in fresh])
    assert (auroc(risks.combined, unneeded).value or 0) > 0.95


def test_a_kind_too_rare_is_left_out() -> None:
    """Fewer turns than can be fitted make no class; without any there is no gate."""
    openings = made_openings(300, steps=("call", "answer"))
    rare = made_openings(FEWEST - 1, steps=("ask",), name="q")
    assert kinds_in([*openings, *rare]) == ("answer",)
    assert fit_gate([*openings, *rare], LAYERS).kinds == ("answer",)
    with pytest.raises(CalibrationError, match="too few"):
        fit_gate([*made_openings(100, steps=("call",)), *rare], LAYERS)
    with pytest.raises(CalibrationError, match="too few"):
        fit_gate(made_openings(100, steps=("answer",)), LAYERS)


def test_states_without_a_spread_are_an_error() -> None:
    """Equal states have no covariance, and no layer is left to choose."""
    equal = made_openings(100)
    equal = [replace(opening, hidden=equal[0].hidden) for opening in equal]
    with pytest.raises(CalibrationError, match="no layer tells"):
        fit_gate(equal, LAYERS)


def test_thresholds_hold_on_fresh_turns() -> None:
    """Of the calls let through no more are needless than asked, and few right ones are stopped."""
    openings = split()
    gate = calibrate_gate(openings, GateRisk(max_risk=0.1, targets=(0.3,)))
    assert [entry.target for entry in gate.section.kinds["answer"].risk] == [
        *(0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
    ]
    found = gate.section.metrics["test"]["answer"]
    assert found["threshold"] is not None
    assert found["realised"]["value"] <= 0.1
    assert found["right_stopped"]["value"] < 0.1
    assert gate.section.metrics["turns"]["fit"] == {"call": 100, "answer": 100, "ask": 100}


def test_a_threshold_sees_only_calls_that_the_model_starts() -> None:
    """Turns in which no call is started bring no evidence: with none started there is no limit."""
    openings = split()
    silent = {name: [replace(o, starts=False) for o in own] for name, own in openings.of.items()}
    gate = calibrate_gate(SplitOpenings(of=silent, layers=LAYERS), GateRisk())
    assert {entry.threshold for entry in gate.section.kinds["answer"].risk} == {None}
    assert gate.section.metrics["test"]["answer"]["unneeded_passed"]["n"] == 0


def test_no_test_query_is_in_a_fit() -> None:
    """A record, or another one with its query, in two splits is refused by name."""
    openings = split()
    fit, test = openings.of["fit"], openings.of["test"]
    shared = replace(test[0], record_id="other", query=f"{fit[3].query.upper()}!")
    with pytest.raises(CalibrationError, match="'other' is scored by a fit"):
        SplitOpenings(of={**openings.of, "test": [shared]}, layers=LAYERS)
    with pytest.raises(CalibrationError, match="'f0'"):
        refuse_shared(fit, [replace(fit[0], query="something else")])


def test_cross_fitting_gives_chance_where_there_is_nothing() -> None:
    """Random states and labels score as chance: nothing that is scored was fitted."""
    openings = made_openings(240, steps=("call", "answer"), apart=0.0)
    risks = cross_fitted_risks(openings, "answer", LAYERS)
    unneeded = np.array([o.step == "answer" for o in openings])
    for signal in ("activation", "combined", "prompt_size", "query_words"):
        rate = auroc(risks[signal], unneeded)
        assert rate.low is not None
        assert rate.low < 0.5 < (rate.high or 0), signal


def test_what_is_measured_by_source() -> None:
    """Each source has its own rates; one without a right call says so and measures nothing."""
    openings = [
        *made_openings(150, source="a", name="a"),
        *made_openings(90, source="b", name="b", steps=("answer", "ask")),
    ]
    found = measure_openings(openings, LAYERS)
    assert found["a"]["n"] == {"answer": 50, "ask": 50, "call": 50}
    answer = found["a"]["kinds"]["answer"]
    signals = {"logprob", "activation", "combined", "distance", "prompt_size", "query_words"}
    assert set(answer) == signals
    assert answer["activation"]["auroc"]["value"] > 0.9
    assert answer["activation"]["auroc_against_logprob"]["low"] > 0
    assert "auroc_against_logprob" not in answer["logprob"]
    assert found["b"]["kinds"] == {}
    assert "no turn" in found["b"]["left_out"]
    text = "\n".join(survey_table({"sources": found, "gate": None}))
    assert "a: 50 answer, 50 ask, 50 call" in text


def test_tools_with_too_few_calls_have_no_distance() -> None:
    """Without two tool means the distance is left out, and the rest is measured."""
    openings = [
        replace(o, tool=o.record_id if o.tool else "")
        for o in made_openings(150, steps=("call", "answer"))
    ]
    risks = cross_fitted_risks(openings, "answer", LAYERS)
    assert "distance" not in risks
    assert {"logprob", "activation", "combined"} < set(risks)


def test_words_that_give_it_away_are_seen() -> None:
    """By hand: a word of needless queries alone raises the risk, one of both leaves it."""
    base = made_openings(4, steps=("call", "answer"))
    texts = ("book a room", "book a song", "book a car", "book a poem")
    rest = [replace(o, query=text) for o, text in zip(base, texts, strict=True)]
    told = [replace(base[0], query=text) for text in ("song", "book", "unheard", "room")]
    # Each class has 6 words of 6 different ones: (0 or 1 or 2) + 1 of 12.
    assert query_word_risks(rest, told).tolist() == pytest.approx([np.log(2), 0, 0, -np.log(2)])


def test_menus_that_give_it_away_are_seen_by_their_size() -> None:
    """Where turns without a call have other menus, the size alone tells, and is shown to."""
    openings = [
        replace(o, menu_size=5 if o.step == "call" else 9)
        for o in made_openings(150, steps=("call", "answer"), apart=0.0)
    ]
    risks = cross_fitted_risks(openings, "answer", LAYERS)
    unneeded = np.array([o.step == "answer" for o in openings])
    assert auroc(risks["prompt_size"], unneeded).value == 1.0


def test_what_passes_where_most_right_calls_do() -> None:
    """By hand: 19 of 20 right calls lie at or below 19, and so do two of four needless ones."""
    right = np.arange(1.0, 21.0)
    needless = np.array([3.0, 19.0, 19.5, 30.0])
    risk, labels = np.concatenate([right, needless]), np.repeat([False, True], [20, 4])
    found = passed_at_kept(risk, labels)
    assert (found.value, found.n) == (0.5, 4)
    assert (found.low or 0) < 0.5 < (found.high or 0)
    assert passed_at_kept(risk, labels, kept=1.0).value == 0.75


def test_a_separable_rate_keeps_an_interval() -> None:
    """Where nothing passes, the interval is no narrower than that of so few trials."""
    found = passed_at_kept([0.0] * 50 + [1.0] * 10, [False] * 50 + [True] * 10)
    assert found.value == 0
    assert found.high == pytest.approx(0.2775, abs=1e-3)


def test_rates_need_both_kinds() -> None:
    """Without one kind the rate is undetermined; a share that keeps nothing is refused."""
    assert passed_at_kept([0.1, 0.2], [False, False]).value is None
    with pytest.raises(CalibrationError):
        passed_at_kept([0.1, 0.2], [False, True], kept=0)


def test_silent_queries_go_where_their_likes_are() -> None:
    """A query without a call lies with the calls like it, or nowhere if these lie apart."""
    words = "one two three four five six seven eight nine ten"
    calls = make_splits(
        [
            SplitItem(id=f"c{i}", query=f"{words} call{i} is {i * 7}", tool=f"t{i % 3}")
            for i in range(40)
        ]
        + [SplitItem(id="own", query="a very different request for music", tool="t0")]
    )
    silent = [
        SplitItem(id="like", query="A very different request for music!", tool=""),
        *(
            SplitItem(id=f"n{i}", query=f"chat number {i} about {i * 3}", tool="")
            for i in range(30)
        ),
    ]
    found = silent_splits(calls, silent, SplitFractions(), 0)
    assert found["like"] == calls.of["own"]
    assert set(found.values()) == {"fit", "select", "test"}
    assert silent_splits(calls, [], SplitFractions(), 0) == {}


def test_bridging_queries_are_left_out() -> None:
    """A query like calls of two splits would lie on both sides, so it is not used."""
    first, between, second = "a b c d e f g h i j", "a b c d e f g h i k", "a b c d e f g h k l"
    items = [
        SplitItem(id="first", query=first, tool="t"),
        SplitItem(id="second", query=second, tool="u"),
    ]
    bridge = [SplitItem(id="bridge", query=between, tool="")]
    cases: tuple[tuple[Split, dict[str, str]], ...] = (("test", {}), ("fit", {"bridge": "fit"}))
    for of_second, expected in cases:
        calls = Splits(
            items=tuple(items), of={"first": "fit", "second": of_second}, groups=2, seed=0
        )
        assert silent_splits(calls, bridge, SplitFractions(), 0) == expected


def test_a_table_says_what_a_threshold_costs() -> None:
    """The lines name the layer, every signal with its interval, and what the threshold does."""
    gate = calibrate_gate(split(), GateRisk(max_risk=0.2))
    text = "\n".join(gate_lines(gate.section))
    assert "read at layer 7" in text
    assert text.count("logprob") == 2
    assert "of the calls that the model starts it stops" in text
    none = calibrate_gate(split(apart=0.0), GateRisk(max_risk=0.01))
    assert "every call is doubtful by it" in "\n".join(gate_lines(none.section))
    assert gate_lines(None) == []


def test_a_state_that_is_not_finite_is_no_reading() -> None:
    """One broken state is an error, never a probability."""
    openings = made_openings()
    gate = fit_gate(openings, LAYERS)
    broken: Opening = replace(openings[0], hidden=openings[0].hidden * float("nan"))
    with pytest.raises(ReadoutError):
        gate_risks(gate, "answer", [broken], LAYERS)


def test_metrics_of_no_turns_are_undetermined() -> None:
    """A test split without turns gives rates without a value, not an error."""
    openings = split()
    gate = calibrate_gate(openings, GateRisk())
    found = gate_metrics(gate, "answer", [], LAYERS, target=0.05)
    assert found["realised"]["value"] is None
    assert found["signals"]["logprob"]["auroc"]["value"] is None
