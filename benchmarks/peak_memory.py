"""Peak memory of a calibration, in a process of its own: flat, whatever the number of records.

Run as a program this is that process: it loads the model, notes its memory, calibrates, and prints
how far the memory rose above that.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
from agents import Agent
from figures import Figure, Goal
from timing import spread_of
from workloads import write_generated

from toolguard.adapters.loading import load_model
from toolguard.adapters.wire import detect_format
from toolguard.calibration.datasets.dataset import open_dataset
from toolguard.calibration.datasets.record_choice import choose_records
from toolguard.calibration.fitting.calibration_run import (
    Progress,
    RunOptions,
    calibrate,
    parse_layers,
)
from toolguard.calibration.fitting.fit_input import FitOptions

FLAT = 1.15  # most that the larger peak may be of the smaller one
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Most memory a calibration used, in MiB: above the loaded model, and of the whole process."""

    above_model: float
    process: float


def measure(agent: Agent, *, counts: tuple[int, int]) -> list[Figure]:
    """Return the peaks for two numbers of records, named for 100 and 10,000, and their ratios."""
    few, many = (_peak(agent.source, count) for count in counts)
    peaks = [
        Figure(
            name=f"calibrate_peak_mib_{name}_records",
            spread=spread_of([peak.above_model]),
            unit="MiB",
            note=f"{count} records, names-only menus of 10 tools; reading, spool and fit, above "
            f"the loaded model; the whole process {peak.process:.0f} MiB",
        )
        for name, count, peak in ((100, counts[0], few), (10_000, counts[1], many))
    ]
    growth = (many.above_model - few.above_model) / (counts[1] - counts[0]) * 1024
    ratios = {
        "calibrate_peak_ratio": (
            many.above_model / few.above_model,
            f"above the loaded model; {growth:.1f} KiB a record",
        ),
        "calibrate_process_peak_ratio": (
            many.process / few.process,
            "of the whole process, interpreter, libraries and model included",
        ),
    }
    return peaks + [
        Figure(
            name=name,
            spread=spread_of([ratio]),
            unit="x",
            goal=Goal(limit=FLAT),
            note=f"peak for {counts[1]} records over that for {counts[0]}, {note}",
        )
        for name, (ratio, note) in ratios.items()
    ]


def _peak(model: str, count: int) -> Peak:
    with tempfile.TemporaryDirectory() as folder:
        data = write_generated(Path(folder) / "data", count)
        out = Path(folder) / "profile"
        done = subprocess.run(  # noqa: S603 - this interpreter on this file
            [sys.executable, __file__, "--model", model, "--data", str(data), "--out", str(out)],
            check=False,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"calibrating on {count} records failed:\n{done.stderr[-2000:]}")
    return Peak(**json.loads(done.stdout))


@click.command()
@click.option("--model", required=True)
@click.option("--data", required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
def command(model: str, data: Path, out: Path) -> None:
    """Calibrate MODEL on DATA and print the peak memory as JSON."""
    loaded = load_model(model)
    before = _start_peak()
    run = RunOptions(
        spool=out / ".spool",
        layers=parse_layers(None, len(loaded.view.blocks)),
        names_only=True,
    )
    records = choose_records(open_dataset([data]))
    wire = detect_format(loaded.tokenizer)
    calibrate(loaded, wire, records, run, FitOptions(), Progress()).profile.save(out)
    peak = _most_used()
    click.echo(json.dumps({"above_model": round(peak - before, 1), "process": round(peak, 1)}))


def _start_peak() -> float:
    """Return the memory in use, in MiB; where the system can, forget that there was once more."""
    if not _STATUS.exists():
        return _most_used()
    _CLEAR.write_text("5")  # makes the high-water mark what is in use now
    return _status_mib("VmRSS")


def _most_used() -> float:
    """Return the most memory that was in use, in MiB."""
    if _STATUS.exists():
        return _status_mib("VmHWM")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)


def _status_mib(field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{_STATUS} has no field {field}")
    return int(found[1]) / 2**10


if __name__ == "__main__":
    command()
