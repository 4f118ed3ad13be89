"""Profiles with their test calls, fitted to made-up calls, for tests of the report."""

from __future__ import annotations

from dataclasses import dataclass, replace

from synthetic_calls import made_calls

from toolguard.calibration.fitting.fit_input import FitOptions, ToolDefinition
from toolguard.calibration.fitting.fit_profile import fit_profile
from toolguard.calibration.report.tested_calls import TestedCalls, read_tested_calls
from toolguard.guard.profile import Profile

MARKUP = "<script>document.title='broken'</script>"
ODD_NAME = f'{MARKUP}"&\u202e'


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A profile and the test calls as it reads them."""

    profile: Profile
    tested: TestedCalls


def reported(n: int = 800, *, names: tuple[str, ...] = (), **made: object) -> Reported:
    """Return a profile of made-up calls, its tools under other names if there are any."""
    collected = made_calls(n, **{"noise": 2.0, **made})
    if names:
        tools = [
            ToolDefinition(name=name, content_hashes=tool.content_hashes)
            for name, tool in zip(names, collected.tools, strict=True)
        ]
        collected = replace(collected, tools=tools)
    profile = fit_profile(collected, FitOptions(max_risk=0.2))
    return Reported(profile=profile, tested=read_tested_calls(profile, collected))


RATE = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 50}
EVALUATION = {
    "n": 50,
    "n_wrong": 10,
    "by_source": {"curated": RATE},
    "signals": {
        "logprob": {
            "cost": {"words": "nothing"},
            "unreadable": 0,
            "auroc": RATE,
            "aurc": {**RATE, "value": 0.09},
            "curve": [{"coverage": 0.5, "risk": 0.0}, {"coverage": 1.0, "risk": 0.2}],
        },
        "self_consistency": {
            "cost": {"words": "five sampled calls"},
            "unreadable": 3,
            "auroc": RATE,
            "aurc": {**RATE, "value": 0.07},
            "curve": [{"coverage": 0.5, "risk": 0.1}, {"coverage": 1.0, "risk": 0.2}],
        },
    },
    "against_logprob": {"self_consistency": {"aurc": {**RATE, "value": -0.02}}},
    "lens_by_block": [
        {"block": block, "agrees_when_right": RATE, "agrees_when_wrong": RATE, "auroc": RATE}
        for block in range(3)
    ],
    "risk": {"coverage": RATE, "realised": RATE},
    "steering": {"redirect": {"n": 50, "switched": RATE, "schema_valid": RATE}},
    "no_call": {"n": 50, "called": RATE},
    "argument_errors": {"n": 9, "n_wrong": 3, "auroc": {"self_consistency": RATE}},
    "call_or_answer": {
        "gate": {"ask": {"signals": {"logprob": {"auroc": RATE, "passed_at_95_kept": RATE}}}},
        "sources": {"curated": {"kinds": {"ask": {"logprob": {"auroc": RATE}}}}},
    },
}
"""What `toolguard evaluate --json` writes, as far as the report reads it."""
