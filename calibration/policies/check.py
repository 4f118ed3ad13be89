"""What a policy means for every tool, and what in it cannot be meant: for `toolguard policy check`.

Knows policies, profiles and menus; runs no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

from toolguard.guard.policy import Policy, ToolPolicy, ToolRuling, is_glob
from toolguard.guard.profile import Profile, ToolStatus
from toolguard.guard.profile_meta import Correction
from toolguard.guard.tools import Menu, Tool

ProblemKind = Literal["contradiction", "dead", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveRule:
    """What happens to calls of one tool, with every default filled in.

    Args:
        tool: name.
        ruling: what the policy says of it.
        status: how far the profile knows it.
        threshold: largest P(wrong) at which it runs by evidence; None if it never does.
        effect: all of it as a phrase.
    """

    tool: str
    ruling: ToolRuling
    status: ToolStatus
    threshold: float | None
    effect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyProblem:
    """Something in a policy that cannot be meant.

    Args:
        kind: `contradiction`: no call could satisfy it; `dead`: it never counts; `unknown`: a name
            that nothing else knows.
        where: path of the key.
        detail: what is wrong, as a sentence.
    """

    kind: ProblemKind
    where: str
    detail: str


def effective_rules(
    policy: Policy, profile: Profile, menu: Menu | None = None
) -> tuple[EffectiveRule, ...]:
    """Return the effective rule of every tool of the profile, the menu and the file."""
    statuses = _statuses(profile, menu)
    named = [key for key in policy.tools if not is_glob(key)]
    rules = []
    for name in dict.fromkeys([*statuses, *named]):
        ruling = policy.ruling(name)
        status = statuses.get(name, "unknown")
        threshold = profile.threshold(ruling.risk_target)
        offered = profile.meta.correction
        effect = "; ".join(_effects(policy, name, ruling, status, threshold, offered=offered))
        rules.append(
            EffectiveRule(
                tool=name, ruling=ruling, status=status, threshold=threshold, effect=effect
            )
        )
    return tuple(rules)


def _statuses(profile: Profile, menu: Menu | None) -> dict[str, ToolStatus]:
    known: dict[str, ToolStatus] = {tool.name: tool.status for tool in profile.meta.tools}
    return known | (dict(profile.view(menu).statuses) if menu else {})


_RULED = {"deny": "never runs", "confirm": "a person confirms", "allow": "always runs"}


def _effects(
    policy: Policy,
    name: str,
    ruling: ToolRuling,
    status: ToolStatus,
    threshold: float | None,
    *,
    offered: Correction | None,
) -> Iterator[str]:
    doubtful: str = ruling.doubtful
    if doubtful == "correct":
        doubtful = f"correct ({offered or 'veto: the profile offers nothing that helps'})"
    if ruling.rule != "judge":
        yield _RULED[ruling.rule]
    elif status != "calibrated":
        # As guard.verdict does it: an untrusted reading never redirects.
        action = "veto" if ruling.doubtful in {"redirect", "correct"} else ruling.doubtful
        yield f"{status}: {_RULED.get(policy.uncalibrated, action)}"
    elif threshold is None:
        yield f"no P(wrong) is allowed at this risk target: {doubtful}"
    else:
        yield f"runs up to P(wrong) {threshold:.4f}, else {doubtful}"
    listed = policy.tool_policy(name)
    if listed is not None and ruling.rule != "deny":
        yield from _conditions(listed)


def _conditions(listed: ToolPolicy) -> Iterator[str]:
    if listed.arguments is not None:
        yield "arguments constrained"
    if listed.required:
        yield f"asks for {', '.join(listed.required)}"
    if listed.irrelevant:
        yield f"without {', '.join(listed.irrelevant)}"
    if listed.budget and listed.budget.per_run:
        yield f"{listed.budget.per_run} a run"
    if listed.budget and listed.budget.per_minute:
        yield f"{listed.budget.per_minute} a minute"
    if listed.roles is not None:
        yield f"roles {', '.join(listed.roles) or 'none'}"


def policy_problems(
    policy: Policy, profile: Profile, menu: Menu | None = None
) -> tuple[PolicyProblem, ...]:
    """Return what in the policy contradicts itself, never counts, or names nothing that exists.

    Args:
        policy: to look at.
        profile: whose tools exist.
        menu: definitions of tools, which then exist too; their schemas are compared with the
            arguments that the policy names.
    """
    known = frozenset(_statuses(profile, menu))
    return (
        *_tier_problems(policy, profile),
        *_name_problems(policy, known),
        *(
            problem
            for key, listed in policy.tools.items()
            for problem in _entry_problems(policy, key, listed, known)
        ),
        *_schema_problems(policy, menu),
    )


def _contradiction(where: str, detail: str) -> PolicyProblem:
    return PolicyProblem(kind="contradiction", where=where, detail=detail)


def _dead(where: str, detail: str) -> PolicyProblem:
    return PolicyProblem(kind="dead", where=where, detail=detail)


def _tier_problems(policy: Policy, profile: Profile) -> Iterator[PolicyProblem]:
    general = policy.risk_target or profile.meta.requested_risk.target
    strictest, held_by = 1.0, ""
    for name, tier in policy.tiers.items():
        target = tier.risk_target or general
        if target > strictest:
            yield _contradiction(
                f"tiers.{name}.risk_target",
                f"{target} is laxer than the {strictest} of the less harmful tier {held_by}",
            )
        else:
            strictest, held_by = target, name


def _name_problems(policy: Policy, known: frozenset[str]) -> Iterator[PolicyProblem]:
    exact = {key for key in policy.tools if not is_glob(key)}
    for key in policy.tools:
        where = f"tools.{key}"
        if key in exact:
            if key not in known:
                yield PolicyProblem(kind="unknown", where=where, detail=_unknown(key, known))
            continue
        matched = sorted(name for name in known | exact if fnmatchcase(name, key))
        deciding = {policy.entry_for(name) for name in matched}
        if not matched:
            yield _dead(where, "the glob matches no tool")
        elif key not in deciding:
            others = ", ".join(sorted(other for other in deciding if other))
            yield _dead(where, f"every tool it matches is decided by {others}")


def _unknown(name: str, known: frozenset[str]) -> str:
    close = get_close_matches(name, sorted(known), n=1)
    hint = f"; is {close[0]!a} meant?" if close else ""
    # In ASCII, so that a look-alike letter or a space at the end can be seen.
    return f"no tool {name!a} is in the profile or the menu{hint}"


def _entry_problems(
    policy: Policy, key: str, listed: ToolPolicy, known: frozenset[str]
) -> Iterator[PolicyProblem]:
    where, tier = f"tools.{key}", policy.tiers[listed.tier]
    rule = listed.rule or tier.rule or "judge"
    if rule != "judge" and listed.doubtful is not None:
        yield _dead(f"{where}.doubtful", f"the rule {rule} decides before the evidence")
    if rule == "deny":
        for name in ("arguments", "required", "irrelevant", "budget", "roles"):
            if getattr(listed, name):
                yield _dead(f"{where}.{name}", "the tool is denied")
    if listed.roles == () and rule != "deny":
        yield _contradiction(f"{where}.roles", "no role may use the tool; write rule: deny")
    if listed.budget and listed.budget.per_run is listed.budget.per_minute is None:
        yield _dead(f"{where}.budget", "it limits nothing")
    for name in sorted({*listed.required} & {*listed.irrelevant}):
        yield _contradiction(f"{where}.required", f"{name} is both required and irrelevant")
    yield from _redirect_problems(policy, key, listed, known)


def _redirect_problems(
    policy: Policy, key: str, listed: ToolPolicy, known: frozenset[str]
) -> Iterator[PolicyProblem]:
    if listed.redirects is None:
        return
    where, tier = f"tools.{key}.redirects", policy.tiers[listed.tier]
    redirecting = (listed.doubtful or tier.doubtful) in {"redirect", "correct"}
    if not redirecting or (listed.rule or tier.rule or "judge") != "judge":
        yield _dead(where, "no call of this tool is redirected")
        return
    if not listed.redirects:
        yield _contradiction(where, "doubtful calls are redirected, to no tool; write veto")
    order = tuple(policy.tiers)
    for target in listed.redirects:
        ruling = policy.ruling(target)
        if target not in known:
            yield PolicyProblem(kind="unknown", where=where, detail=_unknown(target, known))
        elif target == key:
            yield _contradiction(where, f"{target} cannot replace itself")
        elif order.index(ruling.tier) > order.index(listed.tier):
            yield _contradiction(where, f"{target} is in the more harmful tier {ruling.tier}")
        elif ruling.rule in ("deny", "confirm"):
            yield _contradiction(where, f"{target} has the rule {ruling.rule}")


def _schema_problems(policy: Policy, menu: Menu | None) -> Iterator[PolicyProblem]:
    for tool in menu or ():
        key = policy.entry_for(tool.name)
        if key is not None:
            yield from _argument_problems(f"tools.{key}", policy.tools[key], tool)


def _argument_problems(where: str, listed: ToolPolicy, tool: Tool) -> Iterator[PolicyProblem]:
    properties = _names(tool.parameters, "properties")
    constrained = _names(listed.arguments or {}, "properties")
    wanted = {
        "required": (*listed.required, *_names(listed.arguments or {}, "required")),
        "irrelevant": listed.irrelevant,
        "arguments": constrained,
    }
    for part, names in wanted.items():
        for name in names:
            if name not in properties:
                detail = f"the schema of {tool.name} has no argument {name!a}"
                yield PolicyProblem(kind="unknown", where=f"{where}.{part}", detail=detail)
    for name in listed.irrelevant:
        if name in _names(tool.parameters, "required"):
            yield _contradiction(
                f"{where}.irrelevant", f"the schema of {tool.name} requires {name}: no call passes"
            )


def _names(schema: Mapping[str, object], word: str) -> tuple[str, ...]:
    found = schema.get(word)
    return tuple(found) if isinstance(found, Mapping | list | tuple) else ()
