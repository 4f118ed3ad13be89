"""Rows for training: one menu, many independent conversations after it, each blind to the others.

A row is `[menu][conversation 1][conversation 2]...`. Every conversation attends to the menu and to
itself, and its positions continue from the menu's end, so the row computes exactly what separate
prompts would, at a fraction of the cost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from toolguard.adapters.wire.prompting import apply_template
from toolguard.calibration.training.examples import Example, Pool
from toolguard.calibration.training.made_up_words import made_up_result
from toolguard.calibration.training.packed_attention import (
    CHUNK,
    RowMask,
    chunk_length,
    packed_rows_on,
    row_mask,
)
from toolguard.calibration.training.variation import fit_call, vary_query, vary_tools, vary_values
from toolguard.guard.tools import Menu, ToolCall

NAME, ARGUMENTS, REPLY, QUERY, MARKUP, SILENT = 1.0, 0.3, 0.3, 0.1, 0.5, 0.0
DECLINE = 1.5  # the first word of an answer in words: it decides that nothing is called
LOWER_SHARE, SYSTEM_SHARE = 0.4, 0.15
SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "You are a careful assistant with access to tools.",
    "Use a tool when one fits; otherwise answer in words.",
    "Be brief.",
    "You help people with everyday requests.",
    "Call exactly one tool if it fits the request.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How rows are drawn.

    Args:
        budget: tokens a row.
        names_only: share of menus without descriptions and parameters, whose calls are empty.
        undescribed: share of menus with parameters and no descriptions.
        cut: share of human-written conversations that end at the name, which they teach.
        cut_own: the same share of those that are made from templates.
        silent: share of queries that call for no tool.
        values: share of calls whose argument values are changed, so that they must be copied.
        arguments: loss weight of argument and answer tokens, below that of names.
        noise: greatest share of a query's words that are left out or unknown, see `vary_query`.
        results: share of calls that a tool's result and an answer follow.
    """

    budget: int = 1024
    names_only: float = 0.2
    undescribed: float = 0.3
    cut: float = 0.5
    cut_own: float = 0.0
    silent: float = 0.12
    values: float = 0.5
    arguments: float = 0.9
    noise: float = 0.5
    results: float = 0.1


DEFAULT_MIX = Mix()


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of conversation text and the loss weight of its tokens."""

    text: str
    weight: float


def conversation(example: Example, reply: str, result: str | None = None) -> list[Segment]:
    """Return one conversation as the chat template writes it, in weighted pieces.

    Args:
        example: the query and its call.
        reply: what the agent says when no tool fits.
        result: the tool's answer to show and to repeat in a closing turn; None ends after the call.
    """
    pieces = [
        Segment("<|im_start|>user\n", SILENT),
        Segment(example.query, QUERY),
        Segment("<|im_end|>\n<|im_start|>assistant\n", SILENT),
    ]
    if example.call is None:
        first, space, rest = reply.partition(" ")
        return [
            *pieces,
            Segment(first, DECLINE),
            Segment(f"{space}{rest}<|im_end|>", REPLY),
            Segment("\n", SILENT),
        ]
    arguments = json.dumps(dict(example.call.arguments), ensure_ascii=False)
    pieces += [
        Segment('<tool_call>\n{"name": "', MARKUP),
        Segment(f'{example.call.name}"', NAME),
        Segment(f', "arguments": {arguments}}}\n</tool_call><|im_end|>', ARGUMENTS),
        Segment("\n", SILENT),
    ]
    if result is not None:
        opening = "It failed" if result.startswith("error") else "Done"
        pieces += [
            Segment(
                f"<|im_start|>user\n<tool_response>\n{result}\n</tool_response><|im_end|>\n"
                "<|im_start|>assistant\n",
                SILENT,
            ),
            Segment(f"{opening}: {result}<|im_end|>", REPLY),
            Segment("\n", SILENT),
        ]
    return pieces


@dataclass(slots=True)
class Row:
    """Tokens of a menu and of the conversations behind it, as lists of one length.

    Args:
        ids: token ids.
        positions: where each token stands in its own prompt.
        blocks: conversation that each token belongs to, from 1; 0 is the menu.
        weights: loss weight of predicting each token.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def append_menu(self, ids: Sequence[int]) -> None:
        """Append the tokens that all conversations of the row share; they come first."""
        self._append(ids, [SILENT] * len(ids), block=0, start=0)

    def append_conversation(self, ids: Sequence[int], weights: Sequence[float]) -> None:
        """Append one conversation, whose positions go on from the menu's end."""
        last = self.blocks[-1] if self.blocks else 0
        self._append(ids, weights, block=last + 1, start=self.blocks.count(0))

    def _append(
        self, ids: Sequence[int], weights: Sequence[float], *, block: int, start: int
    ) -> None:
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.blocks += [block] * len(ids)
        self.weights += weights


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A batch of rows.

    Args:
        ids: (rows, length) int64.
        positions: (rows, length) int64.
        masks: what the tokens of each row see.
        weights: (rows, length) float32; [r, i] weighs predicting token i from token i - 1.
    """

    ids: Tensor
    positions: Tensor
    masks: tuple[RowMask, ...]
    weights: Tensor

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch on `device`."""
        return PackedBatch(
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            masks=tuple(mask.to(device) for mask in self.masks),
            weights=self.weights.to(device),
        )


class RowBuilder:
    """Draws rows from pools; the same random state gives the same row."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, refusals: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.refusals = refusals

    def menu_text(self, menu: Menu, system: str = "") -> str:
        """Return the prompt up to the first user turn."""
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": ""})
        text = apply_template(
            self.tokenizer, turns, tools=list(menu.schemas()), generation_prompt=False
        )
        return text.removesuffix("<|im_start|>user\n<|im_end|>\n")

    def menu_ids(self, menu: Menu, system: str = "") -> list[int]:
        """Return the tokens of `menu_text`."""
        text = self.menu_text(menu, system)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def build(self, pool: Pool, rng: Random, mix: Mix = DEFAULT_MIX) -> Row:
        """Return one row of at most `mix.budget` tokens: a menu and the conversations that fit."""
        menu, ids = self._menu(pool, rng, mix)
        row = Row()
        row.append_menu(ids)
        while True:
            ids, weights = self._conversation(pool, menu, rng, mix)
            if len(ids) > CHUNK:
                continue  # rare, and it would double the chunks of the whole batch
            if len(row.ids) + len(ids) > mix.budget:
                return row
            row.append_conversation(ids, weights)

    def _menu(self, pool: Pool, rng: Random, mix: Mix) -> tuple[Menu, list[int]]:
        # A menu may take four fifths of a row, so that the rest pays for reading it.
        system = rng.choice(SYSTEM_TEXTS) if rng.random() < SYSTEM_SHARE else ""
        while True:
            menu = vary_tools(
                pool.draw_menu(rng), rng, names_only=mix.names_only, undescribed=mix.undescribed
            )
            ids = self.menu_ids(menu, system)
            if 5 * len(ids) <= 4 * mix.budget:
                return menu, ids

    def _conversation(
        self, pool: Pool, menu: Menu, rng: Random, mix: Mix
    ) -> tuple[list[int], list[float]]:
        example = self._example(pool, menu, rng, mix)
        if rng.random() < mix.results:
            segments = conversation(example, rng.choice(self.refusals), made_up_result(rng))
            if rng.random() < 0.5:
                other = self._example(pool, menu, rng, mix)
                segments += conversation(other, rng.choice(self.refusals))
            return _weighted(*self.encode(segments), mix)
        segments = conversation(example, rng.choice(self.refusals))
        ids, weights = _weighted(*self.encode(segments), mix)
        if example.call is None:
            return ids, weights
        if rng.random() < (mix.cut if pool.examples.get(example.call.name) else mix.cut_own):
            # Cut tokens, not text: the quote after the name is one token with the comma behind it.
            end = len(weights) - weights[::-1].index(NAME)
            return ids[:end], weights[:end]
        return ids, weights

    def _example(self, pool: Pool, menu: Menu, rng: Random, mix: Mix = DEFAULT_MIX) -> Example:
        example = pool.draw_silent(menu.tools, rng) if rng.random() < mix.silent else None
        example = example or pool.draw_example(rng.choice(menu.names), rng)
        if example.call is not None:
            tool = pool.tools[example.call.name]
            example = vary_values(example, pool, tool, rng, share=mix.values)
        if pool.varied:
            example = vary_query(example, rng, noise=mix.noise)
        if example.call is not None:
            example = Example(query=example.query, call=fit_call(example.call, menu))
        return _lower(example) if rng.random() < LOWER_SHARE else example

    def encode(self, segments: Sequence[Segment]) -> tuple[list[int], list[float]]:
        """Return token ids of the joined text and the weight of the segment each one starts in."""
        text = "".join(segment.text for segment in segments)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        bounds: list[tuple[int, float]] = []
        end = 0
        for segment in segments:
            end += len(segment.text)
            bounds.append((end, segment.weight))
        weights: list[float] = []
        at = 0
        for start, _ in encoded["offset_mapping"]:
            while start >= bounds[at][0]:
                at += 1
            weights.append(bounds[at][1])
        return list(encoded["input_ids"]), weights

    def batch(
        self,
        draw_pool: Callable[[], Pool],
        rng: Random,
        rows: int,
        mix: Mix = DEFAULT_MIX,
        own: Mapping[str, Mix] = MappingProxyType({}),
    ) -> PackedBatch:
        """Return `rows` rows padded on the right to one length.

        Args:
            draw_pool: gives the pool of each row.
            rng: source of randomness.
            rows: how many.
            mix: how they are drawn, and their length.
            own: mixes, by pool name, of pools that are drawn otherwise.
        """
        pools = [draw_pool() for _ in range(rows)]
        drawn = [
            self.build(pool, rng, replace(own.get(pool.name, mix), budget=mix.budget))
            for pool in pools
        ]
        # One length for every step: kernels are compiled per shape.
        return self.collate(drawn, multiple=mix.budget)

    def collate(self, rows: Sequence[Row], multiple: int = 256) -> PackedBatch:
        """Return rows as one batch whose length is a multiple of `multiple`."""
        return collate(rows, cast("int", self.tokenizer.pad_token_id), multiple)


def _weighted(ids: list[int], weights: list[float], mix: Mix) -> tuple[list[int], list[float]]:
    return ids, [mix.arguments if weight == ARGUMENTS else weight for weight in weights]


def _lower(example: Example) -> Example:
    if example.call is None:
        return Example(query=example.query.lower(), call=None)
    lowered = {
        k: v.lower() if isinstance(v, str) and v in example.query else v
        for k, v in example.call.arguments.items()
    }
    return Example(
        query=example.query.lower(), call=ToolCall(name=example.call.name, arguments=lowered)
    )


def collate(rows: Sequence[Row], pad_id: int, multiple: int = 256) -> PackedBatch:
    """Return rows as one batch, padded on the right to a multiple of `multiple`.

    Padding attends to padding only and carries no weight.
    """
    length = -(-max(len(row.ids) for row in rows) // multiple) * multiple

    def stack(field_name: str, fill: float, dtype: torch.dtype) -> Tensor:
        padded = [[*getattr(row, field_name), *[fill] * (length - len(row.ids))] for row in rows]
        return torch.tensor(padded, dtype=dtype)

    blocks = stack("blocks", -1, torch.long)
    chunk = chunk_length([row.blocks for row in rows])
    return PackedBatch(
        ids=stack("ids", pad_id, torch.long),
        positions=stack("positions", 0, torch.long),
        masks=tuple(row_mask(row, chunk) for row in blocks),
        weights=stack("weights", 0.0, torch.float32),
    )


def packed_hidden(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Return (rows, length, width): the model's last hidden states on a batch of packed rows."""
    with packed_rows_on(model):
        output = cast("Any", model).model(
            input_ids=batch.ids,
            position_ids=batch.positions,
            row_masks=batch.masks,
            use_cache=False,
        )
    return cast("Tensor", output.last_hidden_state)
