"""The report: what is stored of the test calls, what is counted, drawn, said and escaped."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from reported_profiles import EVALUATION, MARKUP, ODD_NAME, RATE, Reported, reported

from toolguard.calibration.measuring.risk_coverage import risk_coverage
from toolguard.calibration.report.decision_examples import example_groups, tier_verdicts
from toolguard.calibration.report.evaluation_section import evaluation_section
from toolguard.calibration.report.figures import risk_at
from toolguard.calibration.report.interval_bar import interval_bar
from toolguard.calibration.report.map_chart import MapCall, MapTool, map_chart
from toolguard.calibration.report.matrix_chart import matrix_chart
from toolguard.calibration.report.outcomes import (
    ConfusionMatrix,
    confusion_matrix,
    margin_bins,
    reliability,
    tool_rows,
)
from toolguard.calibration.report.overview import overview, usable_entry
from toolguard.calibration.report.page import ReportInput, missing_parts, report_page
from toolguard.calibration.report.plot import Drawing, round_steps
from toolguard.calibration.report.stored_metrics import rate_at
from toolguard.calibration.report.tested_calls import (
    FILE,
    TestedCall,
    TestedCalls,
    calibration_hash,
)
from toolguard.calibration.report.tool_map import map_tools
from toolguard.guard.errors import ArtifactMismatch, ConfigError
from toolguard.guard.rate import undetermined, wilson


@pytest.fixture(scope="module")
def made() -> Reported:
    """A profile of four tools with its test calls; read it, never change it."""
    return reported()


@pytest.fixture(scope="module")
def page(made) -> str:
    """The page with everything on it."""
    queries = {call.record_id: f"query of {call.record_id}" for call in made.tested.calls}
    return report_page(
        ReportInput(
            profile=made.profile, tested=made.tested, evaluation=EVALUATION, queries=queries
        )
    )


def call(expected: str, chosen: str, p_wrong: float = 0.1, *, trusted: bool = True) -> TestedCall:
    return TestedCall(
        record_id=f"{expected}-{chosen}-{p_wrong}",
        menu=0,
        chosen=chosen,
        right=(expected,),
        best=chosen,
        signals={"logprob": 1.0, "activation": None},
        p_wrong=p_wrong,
        trusted=trusted,
    )


def calls_of(*calls: TestedCall) -> TestedCalls:
    return TestedCalls(calibration="c", menus=(("a", "b", "c"),), calls=calls)


# What is stored


def test_stored_calls_are_the_test_split_as_the_profile_reads_it(made):
    """Ids, outcomes and P(wrong) are those of the test split, and the metrics agree with them."""
    tested, test = made.tested, made.profile.meta.metrics["test"]
    assert len(tested.calls) == made.profile.meta.splits.test
    assert int((~tested.wrong).sum()) / len(tested.calls) == test["accuracy"]["model"]["value"]
    for name in made.profile.meta.signals:
        assert tested.signal(name).shape == (len(tested.calls),)
    columns = {name: tested.signal(name) for name in tested.signal_names}
    assert np.array_equal(made.profile.calibrator.probabilities(columns), tested.p_wrong)
    assert float(tested.p_wrong.mean()) == pytest.approx(test["p_wrong"]["mean"])
    readout_right = sum(own.best in own.right for own in tested.calls) / len(tested.calls)
    assert readout_right == pytest.approx(test["accuracy"]["readout"]["value"])


def test_stored_calls_survive_the_file(made, tmp_path):
    """What is written is what is read, and no line of it holds more than one call."""
    made.profile.save(tmp_path)
    made.tested.save(tmp_path)
    assert TestedCalls.load(tmp_path, made.profile.meta) == made.tested
    assert len((tmp_path / FILE).read_text().splitlines()) == len(made.tested.calls) + 2


def test_a_menu_of_one_tool_survives_the_file(tmp_path):
    """Margins of +inf are null in the file, which stays plain JSON."""
    alone = calls_of(call("a", "a"))
    alone.save(tmp_path)
    assert json.loads((tmp_path / FILE).read_text())["calls"][0]["signals"]["activation"] is None
    assert math.isinf(alone.signal("activation")[0])


def test_a_profile_without_the_file_has_no_calls(made, tmp_path):
    """Profiles of earlier versions load all the same."""
    assert TestedCalls.load(tmp_path, made.profile.meta) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-20], "cannot be used"),
        (lambda text: text.replace('"menu": 0', '"menu": 7'), "names a tool that its menu lacks"),
        (lambda text: text.replace('"version": 1', '"version": 1, "more": 2'), "more"),
        (lambda text: text.replace('"calibration": "', '"calibration": "0'), "another calibration"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(made, tmp_path, change, words):
    """A file that is cut, does not fit itself, or is another calibration's is told with a hint."""
    made.tested.save(tmp_path)
    path = tmp_path / FILE
    text = path.read_text()
    path.write_text(change(text))
    assert path.read_text() != text
    with pytest.raises(ArtifactMismatch, match=words) as caught:
        TestedCalls.load(tmp_path, made.profile.meta)
    assert "calibrate again" in caught.value.hint


def test_added_tools_leave_the_calls_in_place(made):
    """A profile that got another tool still belongs to its test calls; one made anew does not."""
    meta = made.profile.meta
    more = (*meta.tools, meta.tools[0].model_copy(update={"name": "new"}))
    assert calibration_hash(meta.model_copy(update={"tools": more})) == made.tested.calibration
    assert calibration_hash(meta.model_copy(update={"seed": 9})) != made.tested.calibration


def test_an_unwritable_folder_is_told(made, tmp_path):
    """The error names the file and what to pass."""
    with pytest.raises(ConfigError, match=FILE):
        made.tested.save(tmp_path / "missing")


# The map


def test_the_map_keeps_the_readouts_distances(made):
    """Calls lie nearer to their own tool than to the mean of the others, on the plane too."""
    places = made.tested.map.tools
    own, others = [], []
    for one in made.tested.calls:
        distances = {name: math.dist(one.at, place) for name, place in places.items()}
        if not one.wrong:
            own.append(distances.pop(one.chosen))
            others.append(sum(distances.values()) / len(distances))
    assert np.mean(own) < 0.7 * np.mean(others)
    assert 0 < made.tested.map.explained <= 1


@pytest.mark.parametrize("kind", ["lda", "cosine", "centred_cosine"])
def test_whitening_and_length_are_the_readouts(made, kind):
    """The map of a cosine does not see the length of a state, that of LDA does."""
    meta = made.profile.meta.model_copy(update={"readout": kind, "covariance_target": None})
    profile = replace(
        made.profile,
        meta=meta,
        readout=replace(made.profile.readout, kind=kind),
        covariance=torch.eye(meta.model.hidden_size).double() if kind == "lda" else None,
    )
    plane = map_tools(profile)
    centre = profile.centre if kind == "centred_cosine" else torch.zeros_like(profile.centre)
    state = profile.means[:1]
    longer = centre + 3 * (state - centre)
    same = torch.allclose(plane.places(state), plane.places(longer), atol=1e-6)
    assert same == (kind != "lda")
    assert torch.allclose(plane.places(profile.means), plane.tools)


def test_two_tools_have_no_map():
    """Fewer than three means span no plane, and the page goes without."""
    made = reported(300, tools=2)
    assert map_tools(made.profile) is None
    assert made.tested.map is None
    html = report_page(ReportInput(profile=made.profile, tested=made.tested))
    assert "Map of the tools" not in html


# What is counted


def test_the_risk_coverage_curve_is_the_running_error_rate():
    """Three calls by rising risk, the second wrong: 0, 1/2, 1/3."""
    curve = risk_coverage([0.1, 0.2, 0.3], [False, True, False])
    assert [(p.coverage, p.risk) for p in curve] == [
        (pytest.approx(1 / 3), 0),
        (pytest.approx(2 / 3), 0.5),
        (1, pytest.approx(1 / 3)),
    ]


def test_equal_risks_are_taken_in_mean_order():
    """With all risks equal every coverage has the base rate."""
    curve = risk_coverage([1.0] * 4, [True, False, False, False])
    assert [p.risk for p in curve] == [0.25] * 4
    assert risk_coverage([], []) == ()
    assert len(risk_coverage(np.arange(1000.0), np.arange(1000) % 7 == 0)) == 101


def test_the_safest_half_has_its_interval():
    """Of four calls the two safest count, with n and a Wilson interval."""
    calls = [call("a", "b", 0.1), call("a", "a", 0.2), call("a", "b", 0.3), call("a", "a", 0.4)]
    found = risk_at(calls_of(*calls), "combined", 0.5)
    assert found == wilson(1, 2)
    assert risk_at(calls_of(), "combined", 0.5).value is None


def test_reliability_bins_hold_every_call_once():
    """Bins are about equal, rise, and their means are the calls' means."""
    p = np.linspace(0, 1, 100)
    bins = reliability(p, p > 0.5, bins=10)
    assert [own.observed.n for own in bins] == [10] * 10
    assert [own.predicted for own in bins] == sorted(own.predicted for own in bins)
    assert bins[0].observed.value == 0
    assert bins[-1].observed.value == 1
    assert reliability(np.array([]), np.array([], dtype=bool)) == ()


def test_margins_are_binned_by_outcome():
    """Each outcome's shares add up to one; infinite margins are left out."""
    margins = np.array([0.0, 1.0, 2.0, 3.0, np.inf])
    bins = margin_bins(margins, np.array([True, True, False, False, False]), bins=3)
    assert (bins.n_right, bins.n_wrong) == (2, 2)
    assert sum(bins.right) == pytest.approx(1)
    assert bins.wrong[0] > 0
    assert bins.wrong[-1] == 0
    assert margin_bins(np.array([np.inf]), np.array([False])) is None


def test_confused_tools_stand_side_by_side():
    """The most confused pair are neighbours on the axes, and lead the list."""
    calls = [*[call("a", "c")] * 3, *[call("c", "a")] * 2, call("b", "b"), call("b", "c")]
    matrix = confusion_matrix(calls)
    assert abs(matrix.tools.index("a") - matrix.tools.index("c")) == 1
    assert sorted(matrix.tools) == ["a", "b", "c"]
    first = matrix.confusions[0]
    assert (first.expected, first.chosen, first.calls) == ("a", "c", 3)
    assert len(matrix.confusions) == 3


def test_a_call_that_is_right_by_another_name_is_no_confusion():
    """Where several tools count as right, the chosen one stands for them."""
    both = TestedCall.model_validate({**call("a", "b").model_dump(), "right": ("a", "b")})
    assert not both.wrong
    assert confusion_matrix([both]).counts == {("b", "b"): 1}


def test_tool_rows_count_what_they_say(made):
    """Found is out of the calls that should choose the tool, justified of those that do."""
    tool = made.profile.meta.tools[0]
    name = tool.name
    calls = [
        call(name, name, 0.1),
        call("other", name, 0.9),
        call(name, "other", 0.9),
        call(name, name, 0.3),
    ]
    (row,) = tool_rows([tool], calls, threshold=0.2)
    assert (row.found.value, row.found.n) == (pytest.approx(2 / 3), 3)
    assert (row.justified.value, row.justified.n) == (pytest.approx(2 / 3), 3)
    assert row.allowed.value == pytest.approx(1 / 3)
    assert row.p_wrong == pytest.approx((0.1 + 0.9 + 0.3) / 3)
    (closed,) = tool_rows([tool], calls, threshold=None)
    assert closed.allowed.value == 0


def test_groups_hold_each_kind_of_call():
    """A call is let through or held back, rightly or not, or not judged at all."""
    calls = [
        call("a", "a", 0.1),
        call("a", "b", 0.2),
        call("a", "b", 0.8),
        call("a", "a", 0.9),
        call("a", "c", 0.0, trusted=False),
    ]
    groups = {group.title: group for group in example_groups(calls_of(*calls), 0.5, {})}
    found = {title: group.calls for title, group in groups.items()}
    assert list(found.values()) == [1, 1, 1, 1, 0, 1]
    assert groups["Runs, and is wrong"].example.call.p_wrong == 0.2
    assert groups["The readout prefers another tool"].example is None


@pytest.mark.parametrize(
    ("p_wrong", "trusted", "threshold", "actions"),
    [
        (0.1, True, 0.5, ["allow", "allow", "allow"]),
        (0.9, True, 0.5, ["allow", "confirm", "veto"]),
        (0.1, True, None, ["allow", "confirm", "veto"]),
        (0.1, False, 0.5, ["veto", "veto", "veto"]),
    ],
)
def test_verdicts_are_the_guards_own(p_wrong, trusted, threshold, actions):
    """The default policy's tiers judge a call as they would at run time."""
    one = call("a", "a", p_wrong, trusted=trusted)
    verdicts = tier_verdicts(one, ("a", "b", "c"), threshold)
    assert [verdict.action for verdict in verdicts] == actions


# What is drawn


def parsed(markup: str) -> ET.Element:
    return ET.fromstring(markup)  # noqa: S314 - our own drawing


def test_a_drawing_escapes_all_text():
    """Names in labels, tips and text are text, whatever they hold."""
    drawing = Drawing(10, 10, ODD_NAME)
    drawing.text((0, 0), ODD_NAME)
    drawing.circle((1, 1), 2, "dot", tip=ODD_NAME)
    html = str(drawing.html())
    assert "<script" not in html
    root = parsed(html)
    assert MARKUP in root.find("text").text
    assert "\u202e" not in html


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 12.2), (0, 0.004), (120, 9000)])
def test_ticks_are_round_and_within(low, high):
    """There are a few, evenly spread, none beyond the ends."""
    ticks = round_steps(low, high)
    assert 3 <= len(ticks) <= 11
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert len({round(b - a, 9) for a, b in pairwise(ticks)}) == 1


@pytest.mark.parametrize("tools", [7, 30, 64])
def test_the_matrix_shows_every_call_for_few_and_many_tools(tools):
    """A cell for each pair that occurs; few tools have counts on them, many have numbers."""
    names = tuple(f"tool_{n}" for n in range(tools))
    counts = {(name, name): 5 for name in names} | {(names[0], names[1]): 2}
    chart = matrix_chart(ConfusionMatrix(tools=names, counts=counts))
    root = parsed(str(chart.svg))
    cells = [box for box in root.iter("rect") if "cell " in box.get("class", "")]
    assert len(cells) == tools + 1
    assert sum("wrong" in box.get("class") for box in cells) == 1
    written = [text.text for text in root.iter("text") if "count" in text.get("class", "")]
    assert ("2" in written) == (tools <= 30)
    assert chart.width < 1150


def test_names_on_the_map_do_not_meet():
    """A name with no free place is left out rather than written over another."""
    tools = [MapTool(name=f"tool_{n}", at=(n / 1000, 0.0), calibrated=True) for n in range(40)]
    far = MapTool(name="far", at=(10.0, 10.0), calibrated=False)
    calls = [MapCall(at=(5.0, 5.0), wrong=True, tip="x"), MapCall(at=(4, 4), wrong=False, tip="y")]
    root = parsed(str(map_chart([*tools, far], calls)))
    names = [text.text for text in root.iter("text")]
    assert "far" in names
    assert len(names) < 41
    assert len([c for c in root.iter("circle") if "tool" in c.get("class", "")]) == 41


def test_a_rate_that_is_undetermined_is_not_drawn():
    """There is nothing to draw, and what lies beyond a scale stands on its end."""
    assert str(interval_bar(undetermined(3))) == ""
    root = parsed(str(interval_bar(wilson(9, 10), span=(0, 0.5))))
    assert all(float(dot.get("cx")) <= 78 for dot in root.iter("circle"))


# The page


def test_every_part_is_on_the_page(page):
    """Words, curves, histograms, matrix, tables, layers, map, examples and other data are there."""
    for words in (
        "The model picks a right tool",
        "Risk over coverage",
        "Is P(wrong) honest?",
        "Risk targets",
        "Log-prob margin",
        "Activation margin",
        "Confusions",
        "Tool by tool",
        "AUROC by block",
        "Map of the tools",
        "Runs, and is right",
        "five sampled calls",
        "The logit lens, block by block",
        "should be a question",
        "What it rests on",
    ):
        assert words in page, words
    assert "Not on this page" not in page


def test_the_page_stands_alone(page):
    """Nothing is loaded from anywhere and nothing runs."""
    assert "default-src 'none'" in page
    assert "<script" not in page
    for source in re.findall(r'(?:href|src)="([^"]*)"', page):
        assert source.startswith(("#", "data:")), source
    assert not re.search(r"url\((?!data:)", page)
    assert not re.search(r"\son[a-z]+=", page)


def test_names_and_queries_are_text():
    """Markup in a tool's name, a query or an evaluation stays text."""
    made = reported(300, names=(ODD_NAME, "b", "c", "d"))
    queries = {one.record_id: f"{MARKUP}<img src=x onerror=1>" for one in made.tested.calls}
    evaluation = {**EVALUATION, "by_source": {MARKUP: RATE}}
    html = report_page(
        ReportInput(
            profile=made.profile, tested=made.tested, evaluation=evaluation, queries=queries
        )
    )
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    assert "\u202e" not in html


def test_without_data_no_query_is_on_the_page(made):
    """Only ids are, and the page says how to have more."""
    given = ReportInput(profile=made.profile, tested=made.tested)
    html = report_page(given)
    assert "<blockquote>" not in html
    assert any("--data" in words for words in missing_parts(given))
    assert "--evaluation" in html


def test_an_old_profile_has_a_page_that_says_what_it_lacks(made):
    """Without test calls and metrics there is still a page, and it tells how to get the rest."""
    bare = replace(made.profile, meta=made.profile.meta.model_copy(update={"metrics": {}}))
    html = report_page(ReportInput(profile=bare))
    assert "Risk targets" in html
    assert FILE in html
    assert "keeps no metrics" in html
    assert "Confusions" not in html
    assert "Map of the tools" in html


def test_the_verdict_says_when_logprob_suffices(made):
    """The badge and the words are the calibration's own finding."""
    metrics = {
        **made.profile.meta.metrics,
        "signals": {"uses": "P(wrong) uses logprob", "words": "n; log-prob suffices", "tried": []},
    }
    meta = made.profile.meta.model_copy(update={"metrics": metrics, "signals": ("logprob",)})
    found = overview(meta)
    assert found.badge == "log-prob suffices"
    assert found.verdict[-1] == "P(wrong) uses logprob: n; log-prob suffices."


def test_a_target_that_lets_nothing_run_is_said(made):
    """The sentence, the tiles and the example threshold do not pretend otherwise."""
    meta = made.profile.meta
    risk = tuple(entry.model_copy(update={"threshold": None}) for entry in meta.risk)
    test = {
        **meta.metrics["test"],
        "risk": [
            {**row, "threshold": None, "realised": undetermined(0).to_dict()}
            for row in meta.metrics["test"]["risk"]
        ],
    }
    closed = meta.model_copy(update={"risk": risk, "metrics": {**meta.metrics, "test": test}})
    assert usable_entry(closed) is None
    assert any("nothing may run" in sentence for sentence in overview(closed).verdict)
    html = report_page(ReportInput(profile=replace(made.profile, meta=closed), tested=made.tested))
    assert "No risk target lets anything run" in html


def test_a_perfect_model_has_a_page():
    """Without an error there are no curves to compare, and the page says that there is none."""
    made = reported(300, all_right=True)
    html = report_page(ReportInput(profile=made.profile, tested=made.tested))
    assert "There is no error on the test split" in html
    assert "Risk over coverage" not in html


def test_votes_are_ordered_and_parts_may_lack():
    """The least AURC comes first; an evaluation of an earlier version has fewer parts."""
    found = evaluation_section(EVALUATION)
    assert [vote.name for vote in found.votes] == ["self consistency", "log-prob margin"]
    assert found.votes[0].against.value == -0.02
    assert found.votes[0].unreadable == 3
    old = evaluation_section({"signals": {"logprob": {"auroc": RATE}}})
    assert old.coverage is None
    assert old.lens is None
    assert old.steering == ()
    assert old.silent is None


@pytest.mark.parametrize(
    "found", [None, 3, {"value": 1}, {**RATE, "value": "high"}, {**RATE, "n": None}, [RATE]]
)
def test_what_is_no_rate_is_none(found):
    """A number of another shape is left out, not shown wrongly."""
    assert rate_at({"a": found}, "a") is None
