"""The benchmarks run at their smallest size and give the promised numbers; none is judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import calibration_speed
import guard_overhead
import pytest
import readout_time
import veto_time
from agents import Agent, LargeShape, open_agent
from figures import Figure, Goal, results_of, table_of
from timing import Pair, Spread, spread_of, time_pairs
from workloads import AIRLINE_QUERIES, AIRLINE_TOOLS, airline, write_generated

from toolguard.calibration.datasets.dataset import open_dataset
from toolguard.calibration.training.architecture import Shape

ROOT = Path(__file__).resolve().parents[1]
PROMISED = {
    "guard_overhead_reference",
    "guard_overhead_100m",
    "veto_time_ratio",
    "calibrate_speedup_plain",
    "calibrate_speedup_nnsight",
    "readout_us_10_tools",
    "readout_us_100_tools",
    "readout_us_1000_tools",
    "calibrate_peak_mib_100_records",
    "calibrate_peak_mib_10000_records",
}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    """Give a small untrained agent."""
    return open_agent("untrained", tmp_path_factory.mktemp("agent"), Shape(width=64, layers=2))


def test_pairs_alternate_their_order_and_leave_out_the_warm_up() -> None:
    """Which side of a pair runs first changes from turn to turn, and both see the same turns."""
    seen: list[str] = []
    times = time_pairs(
        lambda turn: seen.append(f"a{turn}"),
        lambda turn: seen.append(f"b{turn}"),
        pairs=2,
        warm_up=1,
    )
    assert seen == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert len(times) == 2


def test_a_ratio_and_a_spread_are_what_they_say() -> None:
    """A pair's ratio is measured over baseline; quartiles are inclusive; one value has no width."""
    assert Pair(measured_s=3.0, baseline_s=2.0).ratio == 1.5
    assert spread_of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(median=3.0, low=2.0, high=4.0, n=5)
    assert spread_of([7.0]) == Spread(median=7.0, low=7.0, high=7.0, n=1)


@pytest.mark.parametrize(
    ("goal", "met"), [(Goal(limit=2), True), (Goal(limit=2, at_least=True), False), (None, None)]
)
def test_the_report_says_which_goals_are_met(goal: Goal | None, met: bool | None) -> None:
    """A figure stands in the report as a number and with its goal, a missed one plainly."""
    figure = Figure(name="some_ratio", spread=spread_of([1.5]), unit="x", goal=goal)
    report = results_of([figure], model="tiny", quick=True, wall_s=1.0)
    assert report["some_ratio"] == 1.5
    assert report["figures"]["some_ratio"]["met"] is met
    assert report["goals_met"] is (met is not False)
    assert ("NOT MET" in table_of([figure])) is (met is False)


def test_the_report_names_no_machine() -> None:
    """What identifies a machine or a person stays out of a file that is shared."""
    text = json.dumps(results_of([], model="reference", quick=False, wall_s=1.0))
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text
    assert "/" not in text


def test_overheads_are_measured_on_equal_tokens(agent: Agent) -> None:
    """Both overheads come out as ratios around one; a difference in the text would be an error."""
    small = guard_overhead.measure_reference(agent, pairs=2)
    large = guard_overhead.measure_large(
        agent, pairs=2, shape=LargeShape(width=192, layers=2, vocabulary=4096)
    )
    assert (small.name, large.name) == ("guard_overhead_reference", "guard_overhead_100m")
    assert 0.1 < small.value < 10
    assert 0.1 < large.value < 10


def test_a_veto_is_measured_on_a_call_with_arguments(agent: Agent) -> None:
    """The vetoed call has some forty tokens of arguments, none of which the guarded side writes."""
    figure = veto_time.measure(agent, pairs=2)
    assert figure.name == "veto_time_ratio"
    assert "40 of them arguments" in figure.note or "41 of them arguments" in figure.note


def test_calibration_reads_what_the_baselines_read(agent: Agent) -> None:
    """Both baselines are compared state by state on a generated menu of the airline menu's size."""
    workload = airline(Path("nowhere"), limit=3)
    plain, traced = calibration_speed.measure(agent, workload, rounds=1, queries=1)
    assert (plain.name, traced.name) == ("calibrate_speedup_plain", "calibrate_speedup_nnsight")
    assert "generated menu" in plain.note


def test_the_generated_menu_is_as_large_as_the_public_one() -> None:
    """Where the public records are absent, tools and distinct queries are as many as theirs."""
    records = airline(Path("nowhere")).records
    assert len({record.query for record in records}) == len(records) == AIRLINE_QUERIES
    assert {len(record.tools) for record in records} == {AIRLINE_TOOLS}


def test_generated_records_are_valid(tmp_path: Path) -> None:
    """What the memory benchmark writes loads without a problem."""
    dataset = open_dataset([write_generated(tmp_path / "data", 40)])
    assert len({record.id for record in dataset}) == 40
    assert dataset.problems == ()


def test_readouts_are_timed_at_three_sizes() -> None:
    """There is one figure for each menu size."""
    names = {figure.name for figure in readout_time.measure(batches=1, reads=1)}
    assert names == {name for name in PROMISED if name.startswith("readout_us_")}


@pytest.mark.slow
def test_one_command_gives_every_promised_number(tmp_path: Path) -> None:
    """The whole run ends, and its file has a number under each promised key."""
    out = tmp_path / "results.json"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "run.py"),
            *("--quick", "--model", "untrained", "--json", str(out)),
        ],
        check=False,
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert {key for key, value in report.items() if isinstance(value, float)} >= PROMISED
    assert report["quick"] is True
    assert "calibrate_peak_ratio" in done.stdout
