"""All benchmarks in one run: prints a table and writes the numbers as JSON.

`make bench` calls it. PYTHONSAFEPATH must be unset, for the files beside this one are its modules.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import calibration_speed
import click
import guard_overhead
import peak_memory
import readout_time
import torch
import veto_time
from agents import Agent, LargeShape, open_agent
from figures import Figure, results_of, table_of
from workloads import airline, public_folder

from toolguard.calibration.training.architecture import DEFAULT_SHAPE, Shape
from toolguard.guard.errors import ToolguardError

RESULTS = Path(__file__).with_name("results.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is run; the defaults take about eight minutes on two cores."""

    overhead_pairs: int = 160
    large_pairs: int = 60
    large: LargeShape = LargeShape()  # noqa: RUF009 - frozen
    veto_pairs: int = 40
    batches: int = 40
    reads: int = 200
    queries: int | None = None
    rounds: int = 6
    round_queries: int = 8
    records: tuple[int, int] = (100, 10_000)
    untrained: Shape = DEFAULT_SHAPE


QUICK = Sizes(
    overhead_pairs=2,
    large_pairs=2,
    large=LargeShape(width=192, layers=2, vocabulary=4096),
    veto_pairs=2,
    batches=2,
    reads=3,
    queries=4,
    rounds=2,
    round_queries=1,
    records=(100, 120),
    untrained=Shape(width=64, layers=2),
)
"""Shows that everything runs; its figures say nothing."""


def topics(agent: Agent, sizes: Sizes) -> dict[str, Callable[[], Sequence[Figure]]]:
    """Return the benchmarks by topic, in the order of the report."""
    return {
        "guard_overhead": lambda: [
            guard_overhead.measure_reference(agent, pairs=sizes.overhead_pairs),
            guard_overhead.measure_large(agent, pairs=sizes.large_pairs, shape=sizes.large),
        ],
        "veto_time": lambda: [veto_time.measure(agent, pairs=sizes.veto_pairs)],
        "calibration_speed": lambda: calibration_speed.measure(
            agent,
            airline(public_folder(), limit=sizes.queries),
            rounds=sizes.rounds,
            queries=sizes.round_queries,
        ),
        "readout_time": lambda: readout_time.measure(batches=sizes.batches, reads=sizes.reads),
        "peak_memory": lambda: peak_memory.measure(agent, counts=sizes.records),
    }


TOPICS = (
    "guard_overhead",
    "veto_time",
    "calibration_speed",
    "readout_time",
    "peak_memory",
)


@click.command()
@click.option(
    "--model",
    default="reference",
    show_default=True,
    help='"reference", "untrained" (of the same shape), or a folder with a checkpoint.',
)
@click.option("--only", multiple=True, type=click.Choice(TOPICS), help="May be repeated.")
@click.option("--quick", is_flag=True, help="Run as little as shows that everything works.")
@click.option(
    "--json",
    "json_path",
    default=RESULTS,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the numbers go; default: results.json beside this file.",
)
def command(model: str, only: tuple[str, ...], json_path: Path, *, quick: bool) -> None:
    """Measure, print a table and write the numbers as JSON."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    sizes = QUICK if quick else Sizes()
    started = time.perf_counter()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            agent = open_agent(model, Path(folder), sizes.untrained)
            for topic, measure in topics(agent, sizes).items():
                if not only or topic in only:
                    click.echo(f"{topic} ...", err=True)
                    figures += measure()
        except ToolguardError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(error.exit_code)
    report = results_of(
        figures, model=agent.title, quick=quick, wall_s=time.perf_counter() - started
    )
    json_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    click.echo(table_of(figures))
    for figure in figures:
        click.echo(f"{figure.name}: {figure.note}")
    click.echo(f"agent: {agent.title}; {report['wall_s']:.0f} s in all; numbers in {json_path}")


if __name__ == "__main__":
    command()
