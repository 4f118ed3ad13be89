"""Guarded / unguarded `generate`: a turn with one call, on the agent and on a larger random model.

The guard allows the call, so both sides write the same tokens and the difference is what watching,
judging, recording and parsing cost.
"""

from __future__ import annotations

import torch
from agents import Agent, LargeShape, enforcing_guard, large_agent, random_profile
from figures import Figure, Goal
from timing import seconds, spread_of, time_pairs
from turns import Turn, guarded, plain

from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import LoadedModel
from toolguard.calibration.training.catalog import base_menu, curated_queries
from toolguard.guard.tools import Menu, Tool, ToolCall

_TURNS = 8


def measure_reference(agent: Agent, *, pairs: int) -> Figure:
    """Return the overhead on the agent, under the ten base tools with their descriptions."""
    menu = base_menu()
    return _measure(
        agent.loaded,
        menu,
        name="guard_overhead_reference",
        goal=1.02,
        pairs=pairs,
    )


def measure_large(agent: Agent, *, pairs: int, shape: LargeShape) -> Figure:
    """Return the overhead on a random model, under the names of the ten base tools alone.

    A short menu makes a short prompt: what the guard costs is divided by less.
    """
    menu = Menu(tuple(Tool(name=name) for name in base_menu().names))
    loaded = _faster(agent.loaded, menu, shape)
    return _measure(loaded, menu, name="guard_overhead_100m", goal=1.005, pairs=pairs)


def _measure(loaded: LoadedModel, menu: Menu, *, name: str, goal: float, pairs: int) -> Figure:
    turns = _turns(loaded)
    with enforcing_guard(random_profile(loaded, menu, threshold=1.0)) as guard:
        agent = GuardedAgent.of(loaded, guard)
        for turn in turns:
            _require_same(agent, menu, turn)
        times = time_pairs(
            lambda number: guarded(agent, menu, turns[number // 2 % len(turns)]),
            lambda number: plain(loaded, menu, turns[number // 2 % len(turns)]),
            pairs=pairs,
        )
    typical = spread_of([pair.baseline_s for pair in times])
    extra = spread_of([pair.measured_s - pair.baseline_s for pair in times])
    prompt = agent.wire.render(loaded.tokenizer, turns[0].messages, menu)
    parameters = sum(weights.numel() for weights in loaded.model.parameters())
    return Figure(
        name=name,
        spread=spread_of([pair.ratio for pair in times]),
        unit="x",
        goal=Goal(limit=goal),
        note=f"{parameters / 1e6:.1f} M parameters, {loaded.dtype}; prompt of "
        f"{len(loaded.tokenizer(prompt)['input_ids'])} tokens, answers of "
        f"{min(len(turn.tokens) for turn in turns)} to {max(len(turn.tokens) for turn in turns)}; "
        f"unguarded {typical.median * 1e3:.1f} ms, the guard adds {extra.median * 1e3:.2f} ms",
    )


def _turns(loaded: LoadedModel) -> list[Turn]:
    """Return curated queries of several tools, each answered with its right call."""
    queries = curated_queries()
    return [
        Turn.calling(loaded, one.query, ToolCall(name=name, arguments=one.arguments))
        for name, one in queries[:: len(queries) // _TURNS][:_TURNS]
    ]


def _require_same(agent: GuardedAgent, menu: Menu, turn: Turn) -> None:
    result = guarded(agent, menu, turn)
    if len(result.calls) != 1 or result.text != plain(agent.loaded, menu, turn):
        raise RuntimeError(f"the two sides differ: guarded wrote {result.text!r}")


def _faster(small: LoadedModel, menu: Menu, shape: LargeShape) -> LoadedModel:
    """Return the large model in the dtype in which this machine runs it faster."""
    candidates = [large_agent(small, shape, dtype) for dtype in (torch.float32, torch.bfloat16)]
    return min(candidates, key=lambda loaded: _shortest(loaded, menu))


def _shortest(loaded: LoadedModel, menu: Menu) -> float:
    turn = _turns(loaded)[0]
    return min(seconds(lambda _: plain(loaded, menu, turn), number) for number in range(3))
