"""How often the agent names the right tool on queries it never saw, read while it trains.

Quick and teacher-forced: a name counts if each of its tokens is the model's first choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from transformers import PreTrainedModel

from toolguard.calibration.training.examples import Example, Pool
from toolguard.calibration.training.packing import (
    NAME,
    Row,
    RowBuilder,
    conversation,
    packed_hidden,
)
from toolguard.calibration.training.variation import fit_call
from toolguard.guard.tools import Menu

_DRAWS = 20  # expansions a tool of a pool that has templates instead of examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One menu and queries whose right tool is in it."""

    menu: Menu
    examples: tuple[Example, ...]


def draw_cases(pool: Pool, *, size: int, count: int, seed: int, queries: int = 8) -> list[Case]:
    """Return at most `count` queries of the pool, a few to a menu that holds all their right tools.

    Args:
        pool: what to draw from.
        size: tools a menu, `same_topic` of them from the topic of its first one.
        count: queries in all.
        seed: fixes queries and menus.
        queries: most queries to a menu.
    """
    rng = Random(seed)
    waiting = [
        example
        for name in pool.callable_names()
        for example in pool.examples[name] or [pool.draw_example(name, rng) for _ in range(_DRAWS)]
    ]
    rng.shuffle(waiting)
    waiting = waiting[:count]
    cases: list[Case] = []
    while waiting:
        menu = Menu(tuple(pool.draw_menu(rng, size)))
        fitting = [e for e in waiting if e.call and menu.get(e.call.name)][:queries]
        waiting = [e for e in waiting if not any(e is taken for taken in fitting)]
        if fitting:
            cases.append(Case(menu=menu, examples=tuple(fitting)))
    return cases


@torch.inference_mode()
def right_names(
    model: PreTrainedModel, builder: RowBuilder, cases: Sequence[Case], rows: int = 4
) -> tuple[int, int]:
    """Return (right, all): queries whose name the model would write, and how many there are.

    Args:
        model: in evaluation mode.
        builder: with the model's tokenizer.
        cases: menus and queries.
        rows: menus read at once.
    """
    total = sum(len(case.examples) for case in cases)
    packed = [_row(case, builder) for case in cases]
    starts = range(0, len(packed), rows)
    missed = sum(_missed(model, builder, packed[at : at + rows]) for at in starts)
    return total - missed, total


def _row(case: Case, builder: RowBuilder) -> Row:
    row = Row()
    row.append_menu(builder.menu_ids(case.menu))
    for example in case.examples:
        call = fit_call(example.call, case.menu) if example.call else None
        row.append_conversation(
            *builder.encode(conversation(Example(query=example.query, call=call), ""))
        )
    return row


def _missed(model: PreTrainedModel, builder: RowBuilder, rows: Sequence[Row]) -> int:
    """Return how many of the rows' conversations have a name token that is not the first choice."""
    batch = builder.collate(rows).to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16):
        hidden = packed_hidden(model, batch)
    named = batch.weights[:, 1:] == NAME
    chosen = model.lm_head(hidden[:, :-1][named]).argmax(-1)  # (name tokens,)
    wrong = named.nonzero()[chosen != batch.ids[:, 1:][named]]  # (missed tokens, 2): row, place
    return len({(row, rows[row].blocks[place + 1]) for row, place in wrong.tolist()})
