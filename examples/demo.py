"""The whole way in one run: data, calibration, evaluation, guarded calls, a picture.

`make demo` runs it on the bundled agent. Everything it writes lies under --out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import structlog
from numpy.typing import NDArray

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import load_model
from toolguard.adapters.turn_result import GuardedResult
from toolguard.calibration.cli import toolguard
from toolguard.calibration.datasets.dataset import MENUS_FILE, RECORDS_FILE, open_dataset
from toolguard.calibration.datasets.near_duplicates import query_fingerprint
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.measuring.metrics import aurc
from toolguard.calibration.reading.collect import collect
from toolguard.guard.decision import Decision
from toolguard.guard.errors import ToolguardError
from toolguard.guard.guard import Evidence, Guard
from toolguard.guard.policy import Policy
from toolguard.guard.tools import Menu, ToolCall

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

POLICY = Path(__file__).resolve().parent / "policy.yaml"
PICTURE = "margins.png"
SECTIONS = ("Data", "Calibrate", "Evaluate", "Guarded calls", "Picture", "Where things are")
NEW_TOKENS = 64  # a call takes about 30
BATCH_TOKENS = 16_384
LABEL = 9  # columns
LINE = 100  # characters of a text that are shown
STRICT = 0.005  # a risk target that so few calls can never show to be met

# Okabe and Ito's palette, which stays apart for colour-blind readers; line styles differ as well.
RIGHT, WRONG = "#0072B2", "#D55E00"
STYLES: Mapping[str, tuple[str, str]] = {
    "logprob": ("#E69F00", "--"),
    "activation": ("#009E73", ":"),
    "combined": ("#000000", "-"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One situation to show.

    Args:
        title: what it is about.
        wanted: the outcomes it should show, as `outcome` names them.
        tools: the tools it should show them on; empty if any will do.
        queries: tried in order; the first that shows the scene is printed.
        change: makes the menu that is offered from the profile's.
        doubtful: whether it is about doubt, so that a stricter policy may show it instead.
    """

    title: str
    wanted: tuple[str, ...]
    queries: tuple[str, ...]
    tools: tuple[str, ...] = ()
    change: Callable[[Menu], Menu] | None = None
    doubtful: bool = False

    def shows(self, result: GuardedResult) -> bool:
        """Return whether the result is what the scene is about."""
        chosen = result.decisions[-1].tool if result.decisions else ""
        return outcome(result) in self.wanted and (not self.tools or chosen in self.tools)


def _with_other_weather(menu: Menu) -> Menu:
    """Return the menu with another description of get_weather than calibration saw."""
    return Menu(
        tuple(
            replace(tool, description="Send a city to the weather service and store the reply.")
            if tool.name == "get_weather"
            else tool
            for tool in menu
        )
    )


SCENES = (
    Scene(
        title="A clear query: the call runs",
        wanted=("allow",),
        queries=(
            "What is the weather in Lisbon right now?",
            "Translate 'good morning' into Italian.",
            "What's on my calendar tomorrow?",
        ),
    ),
    Scene(
        title="A doubtful write: a person would have to confirm, and nobody is there",
        doubtful=True,
        wanted=("confirm",),
        tools=("create_reminder",),
        queries=(
            "Make a note for Friday that the plumber comes at nine.",
            "Put the dentist on Thursday at four.",
            "Don't let me miss the call with Ruth tomorrow.",
            "Friday, 9 am: rent.",
            "Keep in mind that the parcel comes on Monday.",
        ),
    ),
    Scene(
        title="A doubtful irreversible call: vetoed before its arguments exist",
        doubtful=True,
        wanted=("veto",),
        tools=("send_email", "run_code"),
        queries=(
            "Let Priya know tomorrow at ten that the numbers are in.",
            "Get the draft over to the printers.",
            "Tell the whole team what the script printed.",
            "Pass the Polish version of this on to Marek.",
            "Ping Otto about lunch on Friday.",
            "Work out 17 factorial and mail it.",
            "Forward.",
        ),
    ),
    Scene(
        title="A denied tool: write_file can be asked for, its name cannot be written",
        wanted=("veto", "confirm", "clarify", "redirect", "allow", "no call"),
        queries=("Save the text 'buy milk' to notes.txt.",),
    ),
    Scene(
        title="A doubtful read: asked back, or redirected where every signal agrees on the tool",
        doubtful=True,
        wanted=("redirect", "clarify"),
        queries=(
            "Look up Aurora.",
            "How many people bought the blue lamp last year?",
            "Find everything about the Henderson order.",
            "Who is our biggest customer?",
            "What does the report say about Thursday's storm?",
            "Is there anything about rain on my Saturday?",
            "Open.",
        ),
    ),
    Scene(
        title="The clear query again, but the tool was changed after calibration",
        wanted=("veto",),
        queries=("What is the weather in Lisbon right now?",),
        change=_with_other_weather,
    ),
    Scene(
        title="A query that no tool on the menu answers",
        wanted=("no call",),
        queries=("Thanks, that was all for today.", "Tell me a joke.", "How are you?"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the guard read on one labelled call of the test split."""

    wrong: bool
    margins: Mapping[str, float]
    p_wrong: float


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
        drawn = draw(read_test_split(agent, data), out / PICTURE, guard.threshold)
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


def show_scenes(agent: GuardedAgent, policy: Policy) -> None:
    """Generate for every scene under the guard and print what came of it."""
    print(f"Policy: {policy.mode}, {len(policy.tools)} tools listed.")
    if agent.guard.threshold is None:
        print("The calibration data show no threshold to be safe, so every call is doubtful.")
    watching = _under(agent, Policy())
    strict = _under(agent, policy.model_copy(update={"risk_target": STRICT}))
    for number, scene in enumerate(SCENES, start=1):
        menu = Menu.of(agent.guard.profile.meta.menu if agent.guard.profile else ())
        menu = scene.change(menu) if scene.change else menu
        query, result = _play(agent, scene, menu)
        note = ""
        if not scene.shows(result):
            note = "this did not come about with this model"
            again = _play(strict, scene, menu) if scene.doubtful else (query, result)
            if scene.shows(again[1]):
                query, result = again
                note = f"no query was doubtful enough; under risk_target {STRICT} every call is"
        alone = None if outcome(result) == "allow" else generate(watching, [query], menu)[0]
        lines = [f"({note})"] if note else []
        print(f"\n[{number}] {scene.title}")
        print("\n".join(f"    {line}" for line in [*lines, *block(query, result, alone)]))


def _under(agent: GuardedAgent, policy: Policy) -> GuardedAgent:
    """Return an agent over the same model, profile and log under another policy."""
    guard = Guard(agent.guard.profile, policy, logger=agent.guard.logger)
    return GuardedAgent.of(agent.loaded, guard)


def _play(agent: GuardedAgent, scene: Scene, menu: Menu) -> tuple[str, GuardedResult]:
    """Return the first query that shows the scene, else the first query, and its result."""
    pairs = list(zip(scene.queries, generate(agent, scene.queries, menu), strict=True))
    return next((pair for pair in pairs if scene.shows(pair[1])), pairs[0])


def generate(agent: GuardedAgent, queries: Sequence[str], menu: Menu) -> list[GuardedResult]:
    """Return one greedy turn a query."""
    conversations = [[{"role": "user", "content": query}] for query in queries]
    return agent.generate_batch(
        conversations, menu.tools, max_new_tokens=NEW_TOKENS, do_sample=False
    )


def outcome(result: GuardedResult) -> str:
    """Return the action on the turn's last call, or `no call`."""
    return result.decisions[-1].action if result.decisions else "no call"


def block(query: str, result: GuardedResult, alone: GuardedResult | None = None) -> list[str]:
    """Return the lines that tell what was asked, chosen, decided and answered.

    Args:
        query: what was asked.
        result: under the guard.
        alone: what the model writes where the guard only watches; None leaves that line out.
    """
    rows = [("query", query)]
    for decision in result.decisions:
        rows += [
            ("chosen", decision.tool),
            ("P(wrong)", _p_wrong(decision)),
            ("action", _action(decision)),
        ]
    if not result.decisions:
        rows.append(("chosen", "no tool"))
    rows += [("call", _call(call)) for call in result.calls]
    if result.finish_reason == "guard":
        rows.append(("written", f"{json.dumps(result.text, ensure_ascii=False)} and nothing more"))
    if result.malformed is not None:
        rows.append(("malformed", f"{result.malformed.message}; the call does not run"))
    if result.message["content"]:
        rows.append(("message", _one_line(result.message["content"])))
    if alone is not None and alone.calls != result.calls:
        rows += [("unguarded", _call(call)) for call in alone.calls]
    return [f"{label:<{LABEL}} {text}" for label, text in rows]


def _call(call: ToolCall) -> str:
    return _one_line(f"{call.name} {json.dumps(dict(call.arguments), ensure_ascii=False)}")


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LINE else f"{flat[:LINE]}..."


def _p_wrong(decision: Decision) -> str:
    found = decision.reading.p_wrong
    value = "unknown" if found is None else f"{found:.3f}"
    if decision.threshold is None:
        return f"{value}, nothing is allowed by evidence"
    return f"{value}, allowed up to {decision.threshold:.3f}"


def _action(decision: Decision) -> str:
    target = f" to {decision.target}" if decision.target else ""
    return f"{decision.action}{target}: {decision.detail}"


def read_test_split(agent: GuardedAgent, data: Path) -> list[Reading]:
    """Return a reading of every labelled call that calibration did not use."""
    guard, profile = agent.guard, agent.guard.profile
    if profile is None:
        return []
    fresh = {
        record.id: record
        for record in open_dataset(data)
        if record.is_call and query_fingerprint(record.query) not in profile.seen_queries
    }
    observations = collect(
        agent.loaded,
        agent.wire,
        fresh.values(),
        layers=[profile.meta.layer],
        batch_tokens=BATCH_TOKENS,
        on_skip=_tell_skipped,
    )
    readings = []
    for seen in observations:
        menu = fresh[seen.record_id].menu
        evidence = Evidence(
            chosen=menu.names[seen.chosen], hidden=seen.hidden[0], logprob=seen.scores
        )
        reading = guard.read(evidence, profile.view(menu))
        if reading.p_wrong is not None and len(reading.margins) == 2:
            readings.append(
                Reading(
                    wrong=seen.chosen not in seen.right,
                    margins=reading.margins,
                    p_wrong=reading.p_wrong,
                )
            )
    return readings


def _tell_skipped(record: Record, error: ToolguardError) -> None:
    print(f"left out {record.id}: {error.message}", file=sys.stderr)


def draw(readings: Sequence[Reading], path: Path, threshold: float | None) -> bool:
    """Write the picture: margins of right and wrong calls, and risk against coverage.

    Args:
        readings: of the test split.
        path: PNG file to write.
        threshold: largest P(wrong) that is allowed, to be marked; None marks nothing.

    Returns:
        False if there is nothing to draw, or nothing to draw with.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("matplotlib is missing: install toolguard-margin[plot]", file=sys.stderr)
        return False
    if not readings:
        return False
    wrong = np.array([reading.wrong for reading in readings], dtype=bool)
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = cast("tuple[SubFigure, SubFigure]", figure.subfigures(1, 2))
    counts = f"n = {len(wrong)} test calls, {int(wrong.sum())} wrong"
    figure.suptitle(f"{counts} (none of them seen in calibration)")
    left.suptitle("Margin of the tool the model chose")
    upper, lower = left.subplots(2, 1)
    for axes, signal, unit in ((upper, "logprob", "nats"), (lower, "activation", "readout units")):
        values = np.array([reading.margins[signal] for reading in readings])
        _histogram(axes, values, wrong, f"{signal} margin, {unit}")
    right.suptitle("Wrong calls among those allowed, the surest first")
    axes = right.subplots()
    for signal in STYLES:
        _risk_coverage(axes, signal, _risk(readings, signal), wrong)
    if threshold is not None:
        _mark_threshold(axes, _risk(readings, "combined"), wrong, threshold)
    axes.set(xlabel="share of calls allowed", ylabel="share of them wrong", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return True


def _risk(readings: Sequence[Reading], signal: str) -> NDArray[np.float64]:
    """Return (calls,) numbers that are larger where a call looks more likely wrong."""
    if signal == "combined":
        return np.array([reading.p_wrong for reading in readings])
    return np.array([-reading.margins[signal] for reading in readings])


def _histogram(
    axes: Axes, values: NDArray[np.float64], wrong: NDArray[np.bool_], label: str
) -> None:
    """Draw right calls upwards and wrong ones downwards, each as shares of their own number."""
    bins = np.histogram_bin_edges(values, bins=24)
    for kind, chosen, colour, sign in (("right", ~wrong, RIGHT, 1), ("wrong", wrong, WRONG, -1)):
        count = int(chosen.sum())
        shares = np.histogram(values[chosen], bins=bins)[0] / max(1, count)
        axes.bar(
            bins[:-1],
            sign * shares,
            width=np.diff(bins),
            align="edge",
            color=colour,
            hatch="" if sign > 0 else "///",
            edgecolor="white",
            label=f"{kind} ({count})",
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel=label, ylabel="share of its kind")
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.legend(frameon=False)


def _risk_coverage(
    axes: Axes, signal: str, risk: NDArray[np.float64], wrong: NDArray[np.bool_]
) -> None:
    order = np.argsort(risk, kind="stable")
    accepted = np.arange(1, len(order) + 1)
    area = aurc(risk, wrong).value
    colour, style = STYLES[signal]
    axes.plot(
        accepted / len(order),
        np.cumsum(wrong[order]) / accepted,
        style,
        color=colour,
        label=signal if area is None else f"{signal}, area {area:.3f}",
    )


def _mark_threshold(
    axes: Axes, p_wrong: NDArray[np.float64], wrong: NDArray[np.bool_], threshold: float
) -> None:
    allowed = p_wrong <= threshold
    if allowed.any():
        label = f"threshold: {int(wrong[allowed].sum())} of {int(allowed.sum())} allowed are wrong"
        axes.plot(allowed.mean(), wrong[allowed].mean(), "o", color="black", label=label)


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
