"""A vetoed call / the same call unguarded: a veto falls at the name's end, before any argument."""

from __future__ import annotations

from agents import Agent, enforcing_guard, random_profile
from figures import Figure, Goal
from timing import spread_of, time_pairs
from turns import Turn, guarded, plain

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel
from toolguard.calibration.training.catalog import base_menu
from toolguard.guard.tools import ToolCall

ARGUMENT_TOKENS = 40
_TOOL = "send_email"
_BODY = "Please bring the signed papers to the office on Monday before the meeting begins. "


def measure(agent: Agent, *, pairs: int) -> Figure:
    """Return the time of a vetoed turn over that of the same turn unguarded."""
    loaded, menu = agent.loaded, base_menu()
    call = _call(loaded)
    turn = Turn.calling(loaded, "Write to my colleague about the papers for Monday", call)
    with enforcing_guard(random_profile(loaded, menu, threshold=None), [_TOOL]) as guard:
        watched = GuardedAgent.of(loaded, guard)
        result = guarded(watched, menu, turn)
        if result.calls or result.decisions[0].action != "veto":
            raise RuntimeError(f"expected a veto, found {result.decisions[0].action}")
        times = time_pairs(
            lambda _: guarded(watched, menu, turn),
            lambda _: plain(loaded, menu, turn),
            pairs=pairs,
        )
    return Figure(
        name="veto_time_ratio",
        spread=spread_of([pair.ratio for pair in times]),
        unit="x",
        goal=Goal(limit=0.5),
        note=f"a call of {len(turn.tokens)} tokens, {_argument_tokens(loaded, call)} of them "
        f"arguments; vetoed after {len(result.tokens)}; both times hold the prompt's own",
    )


def _call(loaded: LoadedModel) -> ToolCall:
    """Return a call whose arguments take about `ARGUMENT_TOKENS`."""
    call = ToolCall(name=_TOOL, arguments={})
    for count in range(1, 60):
        body = (_BODY * 5)[: 4 * count]
        arguments = {"to": "sam@example.org", "subject": "Monday", "body": body}
        call = ToolCall(name=_TOOL, arguments=arguments)
        if _argument_tokens(loaded, call) >= ARGUMENT_TOKENS:
            break
    return call


def _argument_tokens(loaded: LoadedModel, call: ToolCall) -> int:
    bare = Turn.calling(loaded, "", ToolCall(name=call.name, arguments={}))
    return len(Turn.calling(loaded, "", call).tokens) - len(bare.tokens)
