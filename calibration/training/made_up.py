"""Tools that mean nothing: what to call, and with what, can only be read off menu and query.

A small model learns a fixed set of tools by heart sooner than it learns to read. These leave it
nothing to learn by heart: names, arguments and values are random syllables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from toolguard.calibration.training.examples import Example, Pool
from toolguard.calibration.training.made_up_words import made_up_value, made_up_word
from toolguard.guard.tools import Tool, ToolCall

TOOLS = 3000
_OPENINGS = ("", "", "", "please", "can you", "I want to", "go and", "now", "hey,", "time to")
_BETWEEN = (" ", " ", " with ", ", ", ": ", " and ")
_LINKS = (" ", " ", " is ", ": ", " = ")


@dataclass(slots=True, kw_only=True)
class MadeUpPool(Pool):
    """A pool of made-up tools, whose queries say a name's words and its arguments' values."""

    def draw_example(self, name: str, rng: Random) -> Example:
        """Return a fresh query for the tool, its parts in random order."""
        words = " ".join(name.split("_"))
        parameters = list(self.tools[name].parameters["properties"])
        arguments = {argument: made_up_value(rng) for argument in parameters if rng.random() < 0.8}
        parts = [f"{argument}{rng.choice(_LINKS)}{value}" for argument, value in arguments.items()]
        rng.shuffle(parts)
        parts.insert(0 if rng.random() < 0.7 else len(parts), words)
        query = rng.choice(_OPENINGS) + " " + parts[0]
        for part in parts[1:]:
            query += rng.choice(_BETWEEN) + part
        return Example(query=query.strip(), call=ToolCall(name=name, arguments=arguments))

    def draw_silent(self, menu: Sequence[Tool], rng: Random) -> Example | None:
        """Return a query for a tool that the menu does not offer."""
        offered = {tool.name for tool in menu}
        absent = next(n for n in iter(lambda: rng.choice(list(self.tools)), "") if n not in offered)
        return Example(query=self.draw_example(absent, rng).query, call=None)


def made_up_pool(seed: int, count: int = TOOLS) -> MadeUpPool:
    """Return a pool of `count` made-up tools; the seed decides them."""
    rng = Random(f"made up {seed}")
    tools: dict[str, Tool] = {}
    while len(tools) < count:
        tool = _tool(rng)
        tools[tool.name] = tool
    return MadeUpPool(
        name="made_up",
        tools=tools,
        groups=dict.fromkeys(tools, "made_up"),
        sizes=(2, 12),
        same_topic=0.0,
        varied=False,
    )


def _tool(rng: Random) -> Tool:
    words = [made_up_word(rng).lower() for _ in range(rng.choice((1, 2, 2, 3)))]
    properties = {made_up_word(rng).lower(): {"type": "string"} for _ in range(rng.randint(0, 3))}
    return Tool(name="_".join(words), parameters={"type": "object", "properties": properties})
