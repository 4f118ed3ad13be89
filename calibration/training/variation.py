"""Examples and menus as they might have been: other values, fewer words, less said of the tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from toolguard.calibration.training.examples import Example, Pool
from toolguard.calibration.training.made_up_words import made_up_value, made_up_word
from toolguard.guard.tools import Menu, Tool, ToolCall

_UNKNOWN = 0.25  # of the words of a query that are varied


def vary_values(example: Example, pool: Pool, tool: Tool, rng: Random, *, share: float) -> Example:
    """Return the example with other values where its query holds an argument word for word.

    A value becomes that of another example, a piece of another query, or made up.

    Args:
        example: what to vary.
        pool: where it comes from.
        tool: the tool it calls; values from a closed list (`enum`) stay.
        rng: source of randomness.
        share: probability, in [0, 1], that values are changed at all.
    """
    if example.call is None or rng.random() >= share:
        return example
    query, arguments = example.query, dict(example.call.arguments)
    texts = [value for value in arguments.values() if isinstance(value, str)]
    for name, value in arguments.items():
        closed = "enum" in tool.parameters.get("properties", {}).get(name, {})
        # A value inside another one, or said twice, cannot be changed alone.
        if value in texts and not closed and query.count(value) == 1 == _holding(value, texts):
            arguments[name] = _other_value(example.call.name, name, pool, rng)
            query = query.replace(value, arguments[name])
    return Example(query=query, call=ToolCall(name=example.call.name, arguments=arguments))


def _holding(value: str, texts: Sequence[str]) -> int:
    return sum(value in text for text in texts)


def _other_value(tool: str, argument: str, pool: Pool, rng: Random) -> str:
    draw = rng.random()
    if draw < 0.35:
        other = pool.draw_example(tool, rng)
        found = other.call.arguments.get(argument) if other.call else None
        if isinstance(found, str) and found:
            return found
    if draw < 0.55:
        words = pool.draw_example(rng.choice(list(pool.tools)), rng).query.split()
        start = rng.randrange(len(words))
        return " ".join(words[start : start + rng.randint(1, 5)])
    return made_up_value(rng)


def vary_tools(menu: Sequence[Tool], rng: Random, *, names_only: float, undescribed: float) -> Menu:
    """Return the menu with names alone (this share), with no descriptions (that one), or whole."""
    draw = rng.random()
    if draw < names_only:
        return Menu(tuple(Tool(name=t.name) for t in menu))
    if draw < names_only + undescribed:
        return Menu(tuple(Tool(name=t.name, parameters=t.parameters) for t in menu))
    return Menu(tuple(menu))


def vary_query(example: Example, rng: Random, *, noise: float) -> Example:
    """Return the example with words left out, or made unknown, outside the argument values.

    Each query has its own share of such words, drawn evenly up to the greatest; a quarter of them
    is replaced by made-up words.

    Args:
        example: what to vary.
        rng: source of randomness.
        noise: greatest share, in [0, 1], of the words that are varied.
    """
    kept = json.dumps(dict(example.call.arguments), ensure_ascii=False) if example.call else ""
    words = example.query.split()
    if len(words) <= 3:
        return example
    share = rng.random() * noise
    varied: list[str] = []
    for word in words:
        draw = rng.random()
        if word in kept or draw >= share:
            varied.append(word)
        elif draw < share * _UNKNOWN:
            varied.append(made_up_word(rng))
    return Example(query=" ".join(varied or words), call=example.call)


def fit_call(call: ToolCall, menu: Menu) -> ToolCall:
    """Return the call with the arguments that the menu's schema of the tool declares, in its order.

    In one order, an argument that is given twice is out of order, which is easily learned.
    """
    tool = menu.get(call.name)
    declared: Mapping[str, Any] = tool.parameters.get("properties", {}) if tool else {}
    arguments = {name: call.arguments[name] for name in declared if name in call.arguments}
    return ToolCall(name=call.name, arguments=arguments)
