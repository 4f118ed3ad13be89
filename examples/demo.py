"""The whole way in one run: data, calibration, evaluation, guarded calls, a picture.

`make demo` runs it on the bundled agent. Everything it writes lies under --out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog
from demo_picture import draw
from demo_scenes import show_scenes

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import load_model
from toolguard.calibration.cli import toolguard
from toolguard.calibration.datasets.dataset import MENUS_FILE, RECORDS_FILE, open_dataset
from toolguard.calibration.labels.fresh_calls import judge_fresh
from toolguard.calibration.labels.judged_calls import JudgedCall
from toolguard.guard.errors import ToolguardError
from toolguard.guard.guard import Guard
from toolguard.guard.profile import Profile

POLICY = Path(__file__).resolve().parent / "policy.yaml"
PICTURE = "margins.png"
SECTIONS = ("Data", "Calibrate", "Evaluate", "Guarded calls", "Picture", "Where things are")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="reference", help="folder, hub id, or reference")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write")
    parser.add_argument("--policy", type=Path, default=POLICY, help="policy file")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        run(options.model, options.out, options.policy)
    except ToolguardError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"\nAll of this took {time.monotonic() - started:.0f} s.", file=sys.stderr)
    return 0


def run(model: str, out: Path, policy: Path) -> None:
    """Write data, profile, evaluation, decisions and picture below `out`, telling of each."""
    data, profile = out / "data", out / "profile"
    _heading(0)
    for name in (RECORDS_FILE, MENUS_FILE):  # of an earlier run; the command never overwrites
        (data / name).unlink(missing_ok=True)
    _command("data", "curated", "--out", data)
    _heading(1)
    _command("calibrate", "--model", model, "--data", data, "--out", profile)
    _heading(2)
    print("The queries that calibration used are left out, so these are its test split.\n")
    _command(
        *("evaluate", "--profile", profile, "--model", model, "--data", data),
        *("--json", out / "evaluation.json"),
    )
    _heading(3)
    with _guard(profile, policy, out / "decisions.jsonl") as guard:
        agent = GuardedAgent.of(load_model(model), guard)
        show_scenes(agent, guard.policy)
        _heading(4)
        drawn = draw(fresh_calls(agent, profile, data), out / PICTURE, guard.threshold)
    print(f"Margins and risk-coverage curves: {out / PICTURE}" if drawn else "No picture was made.")
    _heading(5)
    _where(out, model)


def _heading(number: int) -> None:
    lead = "\n" if number else ""
    print(f"{lead}== {number + 1}. {SECTIONS[number]} ==\n", flush=True)


def _command(*arguments: str | Path) -> None:
    """Run one `toolguard` command in this process, showing it as a person would type it."""
    words = [str(argument) for argument in arguments]
    print(f"$ toolguard {' '.join(words)}", flush=True)
    code = toolguard.main(words, prog_name="toolguard", standalone_mode=False)
    if code:
        sys.exit(code)


@contextmanager
def _guard(profile: Path, policy: Path, log: Path) -> Iterator[Guard]:
    """Give a guard that writes one JSON line a decision to `log`."""
    with log.open("w", encoding="utf-8") as stream:
        logger = structlog.wrap_logger(
            structlog.WriteLogger(stream),
            processors=[
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.processors.JSONRenderer(),
            ],
        )
        yield Guard.load(profile, policy, logger=logger)


def fresh_calls(agent: GuardedAgent, profile: Path, data: Path) -> Sequence[JudgedCall]:
    """Return every labelled call that calibration did not use, as the guard reads it."""
    records = open_dataset(data)
    return judge_fresh(agent.loaded, agent.wire, Profile.load(profile), records).calls


def _where(out: Path, model: str) -> None:
    rows: dict[str, str] = {
        "data": "the labelled queries, as --data takes them",
        "profile": "what `Guard.load` reads",
        "evaluation.json": "all figures of the evaluation, with intervals",
        "decisions.jsonl": "the audit record of every decision above",
        PICTURE: "the picture",
    }
    present = {name: what for name, what in rows.items() if (out / name).exists()}
    width = max(len(str(out / name)) for name in present)
    print("\n".join(f"{out / name!s:<{width}}  {what}" for name, what in present.items()))
    print("\nNext, try a query of your own, then calibrate your own model:\n")
    program = _program()
    print(f'{program} check --profile {out / "profile"} --model {model} --query "TEXT"')
    print(f"{program} calibrate --model FOLDER_OR_HUB_ID --data {out / 'data'} --out my-profile")


def _program() -> str:
    """Return how to call the command from here."""
    installed = Path(sys.prefix) / "bin" / "toolguard"
    here = Path.cwd()
    return str(installed.relative_to(here)) if installed.is_relative_to(here) else "toolguard"


if __name__ == "__main__":
    sys.exit(main())
