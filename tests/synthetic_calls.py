"""Labelled calls with made-up hidden states, for everything that fits and needs no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from toolguard.calibration.fitting.fit_input import CollectedCalls, ToolDefinition
from toolguard.calibration.fitting.tool_means import NameRows
from toolguard.calibration.labels.labelled_calls import HiddenBatch, LabelledCall
from toolguard.guard.profile_meta import ModelIdentity
from toolguard.guard.signals import menu_entropy

DIM = 6


def made_calls(
    n: int = 400,
    *,
    tools: int = 4,
    layers: Sequence[int] = (0, 1, 2),
    best_layer: int = 1,
    noise: float = 1.2,
    rare: int | None = None,
    all_right: bool = False,
    all_wrong: bool = False,
    signal: float = 2.0,
    seed: int = 0,
) -> CollectedCalls:
    """Return calls whose hidden state points to the right tool, most clearly at one layer.

    The model chooses by a noisy copy of the same evidence, so small margins mean errors.
    """
    rng = np.random.default_rng(seed)
    centres = signal * rng.normal(size=(tools, DIM))
    label = rng.integers(0, tools, n)
    evidence = centres[label] + noise * rng.normal(size=(n, DIM))
    logits = -((evidence[:, None] - centres) ** 2).sum(2) / 2 + rng.normal(size=(n, tools))
    chosen = logits.argmax(1)
    if all_right:
        chosen = label.copy()
    if all_wrong:
        chosen = (label + 1) % tools
    if rare is not None:  # the model never gets this tool right
        chosen[label == rare] = (rare + 1) % tools
        chosen[chosen == rare] = label[chosen == rare]
    ordered = np.sort(logits, axis=1)
    splits = np.where(
        np.arange(n) % 4 < 2, "fit", np.where(np.arange(n) % 4 == 2, "select", "test")
    )
    calls = tuple(
        LabelledCall(
            record_id=f"r{i}",
            split=str(splits[i]),
            fold=(i // 4) % 5 if splits[i] == "fit" else -1,
            tools=tuple(range(tools)),
            chosen=int(chosen[i]),
            right=frozenset({int(label[i])}),
            logprob_margin=float(ordered[i, -1] - ordered[i, -2]),
            entropy=menu_entropy(torch.tensor(logits[i])),
        )
        for i in range(n)
    )
    hidden = {
        layer: torch.tensor(
            evidence + (0.1 if layer == best_layer else 6.0) * rng.normal(size=(n, DIM)),
            dtype=torch.float32,
        )
        for layer in layers
    }

    def layer_pass(layer: int) -> Iterator[HiddenBatch]:
        for start in range(0, n, 64):
            rows = tuple(range(start, min(start + 64, n)))
            yield HiddenBatch(calls=rows, hidden=hidden[layer][list(rows)])

    return CollectedCalls(
        calls=calls,
        layer_pass=layer_pass,
        layers=tuple(layers),
        tools=tuple(
            ToolDefinition(name=f"tool_{t}", content_hashes=(f"h{t}",)) for t in range(tools)
        ),
        names=NameRows(
            rows=torch.tensor(rng.normal(size=(tools, DIM)), dtype=torch.float32),
            mean=torch.zeros(DIM),
        ),
        seen=frozenset({1, 2**64 - 1}),
        model=ModelIdentity(
            name="made",
            fingerprint="f",
            dtype="float32",
            family="qwen3",
            blocks=3,
            hidden_size=DIM,
            template_hash="t",
            tokenizer_hash="k",
        ),
        wire_format="hermes",
        prefix_text='{"name": "',
        prefix_ids=(1, 2),
        dataset_hash="d",
    )
