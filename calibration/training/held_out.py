"""How often the agent names the right tool on queries it never saw: a quick teacher-forced reading during training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from transformers import Qwen3ForCausalLM

from toolguard.calibration.training.examples import Example, Pool, fit_call
from toolguard.calibration.training.packing import (
    NAME,
    SILENT,
    Row,
    RowBuilder,
    collate,
    conversation,
)
from toolguard.guard.tools import Menu


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One menu and queries whose right tool is in it."""

    menu: Menu
    examples: tuple[Example, ...]


def draw_cases(pool: Pool, *, size: int, count: int, seed: int, queries: int = 8) -> list[Case]:
    """Return at most `count` queries of the pool, a few to a menu of `size` tools that holds all of their right tools.

    Half of a menu's distractors come from the topic of its first tool, as `Pool.draw_menu` has it.
    """
    rng = Random(seed)
    waiting = [
        e
        for name in pool.tools
        for e in (pool.examples[name] or [pool.draw_example(name, rng) for _ in range(20)])
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


def _row(case: Case, builder: RowBuilder) -> Row:
    row = Row()
    ids = builder.tokenizer(builder.menu_text(case.menu), add_special_tokens=False)["input_ids"]
    builder._append(row, ids, [SILENT] * len(ids), block=0)
    for block, example in enumerate(case.examples, start=1):
        call = fit_call(example.call, case.menu) if example.call else None
        ids, weights = builder.encode(conversation(Example(query=example.query, call=call), ""))
        builder._append(row, ids, weights, block=block)
    return row


@torch.inference_mode()
def right_names(
    model: Qwen3ForCausalLM, builder: RowBuilder, cases: Sequence[Case], rows: int = 4
) -> tuple[int, int]:
    """Return (right, all): queries whose every name token is the model's first choice, and how many there are."""
    right = total = 0
    for start in range(0, len(cases), rows):
        batch = collate(
            [_row(case, builder) for case in cases[start : start + rows]],
            builder.tokenizer.pad_token_id,
        )
        device = model.device
        with torch.autocast(device.type, torch.bfloat16):
            hidden = model.model(
                input_ids=batch.ids.to(device),
                position_ids=batch.positions.to(device),
                attention_mask=batch.attends.to(device),
                use_cache=False,
            ).last_hidden_state
        named = batch.weights[:, 1:] == NAME
        chosen = model.lm_head(hidden[:, :-1][named.to(device)]).argmax(-1).cpu()
        missed = chosen != batch.ids[:, 1:][named]
        which = [(r, i) for r, i in named.nonzero().tolist()]
        for index, case in enumerate(cases[start : start + rows]):
            wrong = {
                _block_at(batch, r, i + 1)
                for (r, i), bad in zip(which, missed.tolist(), strict=True)
                if bad and r == index
            }
            total += len(case.examples)
            right += len(case.examples) - len(wrong)
    return right, total


def _block_at(batch: object, row: int, position: int) -> tuple[int, int]:
    # The conversation's first position is enough to tell conversations of a row apart.
    weights = batch.weights[row]  # type: ignore[attr-defined]
    start = position
    while start and weights[start - 1] == NAME:
        start -= 1
    return row, start
