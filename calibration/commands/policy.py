"""`toolguard policy`: what a policy file means, what it would have done, and its schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from toolguard.calibration.command_options import json_option, profile_option
from toolguard.calibration.command_output import show_result, write_json
from toolguard.calibration.datasets.menu_file import read_menu
from toolguard.calibration.policies.check import (
    EffectiveRule,
    PolicyProblem,
    effective_rules,
    policy_problems,
)
from toolguard.calibration.policies.replay import (
    Outcome,
    PolicyReplay,
    ReplayReport,
    replay_decisions,
)
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile
from toolguard.guard.tools import Menu

GATE_NOT_MET = 3

_file_argument = click.argument("file", metavar="FILE", type=click.Path(path_type=Path))


@click.group()
def command() -> None:
    """Explain a policy file, try it on recorded decisions, and print its JSON Schema."""


@command.command()
@_file_argument
@profile_option
@click.option(
    "--tools",
    type=click.Path(path_type=Path),
    help="JSON list of tools on offer; default: the profile's own menu.",
)
@json_option
@click.pass_context
def check(
    ctx: click.Context, file: Path, folder: Path, tools: Path | None, json_path: str | None
) -> None:
    """Show every tool's rule, and what is amiss.

    Amiss is what cannot be meant: looks for contradictions, for rules that never count, and for
    names of tools and arguments that neither the profile nor the menu knows. Exit code 3 if there
    is any.
    """
    policy, profile = Policy.load(file), Profile.load(folder)
    menu = read_menu(tools) if tools else _profile_menu(profile)
    rules = effective_rules(policy, profile, menu)
    problems = policy_problems(policy, profile, menu)
    text = "\n".join(_check_lines(policy, rules, problems))
    show_result(_check_json(policy, rules, problems), text, json_path)
    if problems:
        click.echo(f"problems in {file}: {len(problems)}", err=True)
        ctx.exit(GATE_NOT_MET)


@command.command()
@_file_argument
@click.option(
    "--audit", "url", required=True, metavar="URL", help="Audit store: a path or a database URL."
)
@click.option(
    "--profile",
    "folder",
    type=click.Path(path_type=Path),
    help="Profile folder, for the thresholds of the file's risk targets and for who may replace"
    " whom; default: thresholds as recorded, every rival calibrated.",
)
@json_option
def replay(file: Path, url: str, folder: Path | None, json_path: str | None) -> None:
    """Judge recorded decisions by a policy.

    Shows what would change if this policy judged them. Decisions that rest on arguments, roles or
    budgets are kept as recorded: the store holds none of these.
    """
    from toolguard.adapters.audit_store import AuditStore

    trial = PolicyReplay(Policy.load(file), Profile.load(folder) if folder else None)
    with AuditStore.open(url, create=False) as store:
        report = replay_decisions(trial, store.events(kind="decision"))
    show_result(_replay_json(report), "\n".join(_replay_lines(report)), json_path)


@command.command()
@json_option
def schema(json_path: str | None) -> None:
    """Print the JSON Schema of policy files, for editors."""
    write_json(Policy.json_schema(), json_path or "-")


def _check_lines(
    policy: Policy, rules: Sequence[EffectiveRule], problems: Sequence[PolicyProblem]
) -> Iterator[str]:
    yield f"mode {policy.mode}, {len(policy.tools)} entries, {policy.content_hash[:16]}"
    yield ""
    rows = [("tool", "listed as", "tier", "effective rule")]
    for rule in rules:
        key = rule.ruling.key
        listed = "-" if key is None else "its name" if key == rule.tool else key
        rows.append((rule.tool, listed, rule.ruling.tier, rule.effect))
    yield from _columns(rows)
    if policy.mode == "monitor":
        yield "(mode monitor: every call runs, and this is only recorded)"
    if problems:
        yield ""
    for problem in problems:
        yield f"{problem.kind}: {problem.where}: {problem.detail}"


def _check_json(
    policy: Policy, rules: Sequence[EffectiveRule], problems: Sequence[PolicyProblem]
) -> dict[str, Any]:
    return {
        "mode": policy.mode,
        "content_hash": policy.content_hash,
        "tools": [
            {
                "tool": rule.tool,
                "entry": rule.ruling.key,
                "tier": rule.ruling.tier,
                "rule": rule.ruling.rule,
                "doubtful": rule.ruling.doubtful,
                "risk_target": rule.ruling.risk_target,
                "threshold": rule.threshold,
                "status": rule.status,
                "effect": rule.effect,
            }
            for rule in rules
        ],
        "problems": [asdict(problem) for problem in problems],
    }


def _replay_lines(report: ReplayReport) -> Iterator[str]:
    yield f"{report.decisions} decisions, {len(report.changes)} would change"
    if report.changes:
        yield (
            f"{report.count(ran=True, runs=False)} that ran would not, "
            f"{report.count(ran=False, runs=True)} that did not would run"
        )
    if report.kept:
        yield f"{report.kept} rest on more than evidence and are kept as recorded"
    if report.unreadable:
        yield f"{report.unreadable} events hold no record of a decision"
    if not report.changes:
        return
    found = [change.replayed for change in report.changes]
    counted = Counter(
        (one.tool or "(not on the menu)", str(one.was), _told(one.would), one.would.reason)
        for one in found
    )
    rows = [("tool", "was", "would be", "reason", "calls")]
    rows += [(*group, str(calls)) for group, calls in counted.most_common()]
    yield ""
    yield from _columns(rows)
    if any(outcome.action != outcome.proposed for one in found for outcome in (one.was, one.would)):
        yield "(in parentheses: what the policy proposed)"


def _told(outcome: Outcome) -> str:
    return f"{outcome} -> {outcome.target}" if outcome.action == "redirect" else str(outcome)


def _replay_json(report: ReplayReport) -> dict[str, Any]:
    return {
        "decisions": report.decisions,
        "changed": len(report.changes),
        "stopped": report.count(ran=True, runs=False),
        "released": report.count(ran=False, runs=True),
        "kept": report.kept,
        "unreadable": report.unreadable,
        "changes": [
            {
                "seq": change.seq,
                "call_id": change.call_id,
                "tool": change.replayed.tool,
                "was": asdict(change.replayed.was),
                "would": asdict(change.replayed.would),
            }
            for change in report.changes
        ],
    }


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _profile_menu(profile: Profile) -> Menu | None:
    return Menu.of(profile.meta.menu) if profile.meta.menu else None
