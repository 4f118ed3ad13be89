"""`toolguard check`: one decision, read and judged without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.answering.gate_table import WORDS
from toolguard.calibration.answering.openings import read_openings
from toolguard.calibration.command_model import open_model_of
from toolguard.calibration.command_options import json_option, model_options, profile_option
from toolguard.calibration.command_output import show_result
from toolguard.calibration.datasets.menu_file import read_json_file, read_menu
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.collect import collect
from toolguard.guard.answer_gate import OpeningEvidence
from toolguard.guard.audit import decision_record
from toolguard.guard.decision import Decision
from toolguard.guard.errors import ConfigError, DatasetError, ToolguardError
from toolguard.guard.guard import Evidence, Guard
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile
from toolguard.guard.tools import Menu

_BATCH_TOKENS = 4096


class _SilentLogger:
    def info(self, _event: str, **_fields: Any) -> None:
        """Drop the record."""


_SILENT = _SilentLogger()


@click.command("check")
@profile_option
@model_options
@click.option("--query", metavar="TEXT", help="What the user says.")
@click.option(
    "--messages",
    type=click.Path(path_type=Path),
    help="JSON list of chat messages instead of --query.",
)
@click.option(
    "--tools",
    type=click.Path(path_type=Path),
    help="JSON list of tools on offer; default: the profile's own menu.",
)
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="Policy file; default: enforce with the profile's risk target.",
)
@json_option
def command(
    folder: Path,
    query: str | None,
    messages: Path | None,
    tools: Path | None,
    policy: Path | None,
    json_path: str | None,
    **options: Any,
) -> None:
    """Read one decision: scores of every tool, margins, P(wrong), and what the policy would do."""
    if (query is None) == (messages is None):
        raise click.UsageError("give either --query or --messages")
    if query is not None and not query.strip():
        raise click.BadParameter("it is empty", param_hint="--query")
    # The table shows the decision; a log line as well would be in its way.
    guard = Guard.load(folder, policy or Policy(mode="enforce"), logger=_SILENT)
    menu = read_menu(tools) if tools else _profile_menu(guard, folder)
    record = _record(query, messages, menu)
    profile = _profile(guard)
    loaded, wire = open_model_of(profile, options)
    decision = read_decision(loaded, wire, guard, record)
    show_result(_as_json(decision), table(decision), json_path)


def read_decision(loaded: LoadedModel, wire: WireFormat, guard: Guard, record: Record) -> Decision:
    """Return the verdict on the tool that the model would choose greedily for this record.

    Raises:
        ConfigError: if the prompt does not fit the model's context.
    """
    profile = _profile(guard)
    observation = next(
        collect(
            loaded,
            wire,
            [record],
            layers=[profile.meta.layer],
            batch_tokens=_BATCH_TOKENS,
            names_only=profile.meta.preset == "paper",
            on_skip=_refuse,
        )
    )
    evidence = Evidence(
        chosen=record.menu.names[observation.chosen],
        hidden=observation.hidden[0],
        logprob=observation.scores,
        opening=_opening(loaded, wire, profile, record),
    )
    return guard.check(evidence, profile.view(record.menu))


def _opening(
    loaded: LoadedModel, wire: WireFormat, profile: Profile, record: Record
) -> OpeningEvidence | None:
    """Return what is read where the call could start; None if the profile cannot judge it."""
    if profile.gate is None:
        return None
    opening = next(
        read_openings(
            loaded,
            wire,
            [record],
            layers=[profile.gate.section.layer],
            batch_tokens=_BATCH_TOKENS,
            names_only=profile.meta.preset == "paper",
            decisions=False,
            on_skip=_refuse,
        )
    )
    return OpeningEvidence(hidden=opening.hidden[0], log_odds=opening.log_odds)


def table(decision: Decision) -> str:
    """Return the reading as text a person can read, best tools first."""
    reading = decision.reading
    order = reading.ranking("logprob") or reading.menu
    width = max(len(name) for name in order) + 2
    lines = [f"  {'tool':<{width}}" + "".join(f"{signal:>14}" for signal in reading.scores)]
    for name in order:
        at = reading.menu.index(name)
        mark = ">" if name == reading.chosen else " "
        lines.append(
            f"{mark} {name:<{width}}"
            + "".join(f"{values[at]:>14.4f}" for values in reading.scores.values())
        )
    margins = ", ".join(f"{signal} {value:.4f}" for signal, value in reading.margins.items())
    limit = (
        "nothing is allowed by evidence"
        if decision.threshold is None
        else f"allowed up to {decision.threshold:.4f}"
    )
    p_wrong = "unknown" if reading.p_wrong is None else f"{reading.p_wrong:.4f}"
    lines += [
        "",
        f"margin of {reading.chosen}: {margins}",
        f"P(wrong) {p_wrong}; {limit}",
        *(f"P({WORDS[kind]}) {p:.4f}" for kind, p in reading.no_call.items()),
        f"the policy would {decision.proposed}: {decision.detail}"
        + (f" -> {decision.target}" if decision.target else ""),
    ]
    return "\n".join(lines)


def _as_json(decision: Decision) -> dict[str, Any]:
    scores = {
        s: dict(zip(decision.reading.menu, v, strict=True))
        for s, v in decision.reading.scores.items()
    }
    return {**decision_record(decision), "scores": scores}


def _profile(guard: Guard) -> Profile:
    if guard.profile is None:
        raise ConfigError("a profile is needed")
    return guard.profile


def _profile_menu(guard: Guard, folder: Path) -> Menu:
    tools = _profile(guard).meta.menu
    if not tools:
        raise ConfigError(
            f"the profile {folder} keeps no menu", hint="name the tools on offer with --tools"
        )
    return Menu.of(tools)


def _record(query: str | None, messages: Path | None, menu: Menu) -> Record:
    turns: Any = (
        [{"role": "user", "content": query}] if messages is None else read_json_file(messages)
    )
    if not isinstance(turns, list) or not turns:
        raise DatasetError(f"{messages} holds no list of chat messages")
    asked = next(
        (
            turn.get("content")
            for turn in reversed(turns)
            if isinstance(turn, dict) and turn.get("role") == "user"
        ),
        None,
    )
    return Record.model_validate(
        {
            "id": "check",
            "source": "check",
            "split": "check",
            "query": asked or "",
            "messages": turns,
            "tools": menu.tools,
            "call": None,
        }
    )


def _refuse(_record: Record, error: ToolguardError) -> None:
    raise error
