"""Initial weights that can already copy: what followed a token before follows it again.

A transformer that has to find this circuit by itself needs more text than the reference agent ever
sees, and without it the agent learns names and values by heart instead of reading them off the
prompt. Some heads of the first block look at the token before; some of the second look at places
whose token before is the present one, and write the token found there. The other half of the heads
stays free for what training finds: where all copied, choosing a tool was learned late.

Source: Olsson et al. (2022), "In-context learning and induction heads", for the circuit; setting
    initial weights by what trained ones look like follows Trockman & Kolter (2023), "Mimetic
    initialization of self-attention layers".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

SHARPNESS = 2.0  # root mean square of queries and keys; with 1 no head can look at one place alone
QUIET = 0.1  # factor on what all other parts write, which is noise at first
HUSHED = 0.1  # the same where a norm brings what a part writes to full size again
SHARED = 0.32  # length of the part that all embeddings share, about that of a whole embedding
WRITTEN = 0.2  # how strongly the token before is written
COPIED = 1.0  # how strongly the token found is written
FAST = 5  # pairs of rotary dimensions that turn fast enough to tell neighbours apart
_PROBE = (4, 64)  # rows and tokens of the random text that queries and keys are measured on


@torch.no_grad()
def start_copying(model: PreTrainedModel) -> None:
    """Set weights of the embedding and of the first two blocks; the random state decides them.

    Args:
        model: untrained, of at least two blocks, of a family with rotary positions.
    """
    config: Any = model.config
    width, size = config.hidden_size, config.head_dim
    groups = config.num_attention_heads // config.num_key_value_heads
    # Content is compared in the dimensions that turn slowly: it must match at any distance.
    half = size // 2
    slow = torch.cat([torch.arange(size // 4, half), torch.arange(3 * size // 4, size)])
    fast = torch.cat([torch.arange(FAST), half + torch.arange(FAST)])
    part = len(slow)
    count = max(1, config.num_key_value_heads // 2)
    axes = torch.linalg.qr(torch.randn(width, width)).Q
    shared, tokens, before, _ = axes.split(
        [1, count * part, count * part, width - 1 - 2 * count * part], dim=1
    )
    _calm(model, shared[:, 0])
    first, second = (block.self_attn for block in _blocks(model)[:2])
    here, one_back = _neighbours(size, _theta(config))
    for at in range(count):
        token = tokens[:, at * part : (at + 1) * part]  # (width, part)
        written = before[:, at * part : (at + 1) * part]
        keys = slice(at * size, (at + 1) * size)
        first.k_proj.weight[keys] = one_back[:, None] * shared.T
        second.k_proj.weight[keys] = _rows(slow, written.T, size)
        for attention in (first, second):
            attention.v_proj.weight[at * size : at * size + part] = token.T
        for head in range(at * groups, (at + 1) * groups):
            queries = slice(head * size, (head + 1) * size)
            read = slice(head * size, head * size + part)
            first.q_proj.weight[queries] = here[:, None] * shared.T
            first.o_proj.weight[:, read] = written * WRITTEN / groups
            second.q_proj.weight[queries] = _rows(slow, token.T, size)
            second.o_proj.weight[:, read] = token * COPIED / groups
    for attention, used in ((first, fast), (second, slow)):
        _sharpen(model, attention, used, count * size)


def _blocks(model: PreTrainedModel) -> Sequence[Any]:
    return cast("Sequence[Any]", cast("Any", model).model.layers)


def _theta(config: Any) -> float:
    """Return the rotary base; all layers of the agents have one."""
    parameters = config.rope_parameters
    own = parameters if "rope_theta" in parameters else next(iter(parameters.values()))
    return float(own["rope_theta"])


def _calm(model: PreTrainedModel, shared: Tensor) -> None:
    """Give all embeddings one common part, which the softmax cannot see, and quieten the rest."""
    embedding = cast("Any", model).model.embed_tokens.weight  # (vocabulary, width)
    embedding -= torch.outer(embedding @ shared, shared)
    embedding += SHARED * shared
    for place, block in enumerate(_blocks(model)):
        block.self_attn.o_proj.weight.mul_(QUIET)
        block.mlp.down_proj.weight.mul_(QUIET)
        if hasattr(block, "post_feedforward_layernorm"):
            _set_gain(block.post_feedforward_layernorm, HUSHED)
            # The first block's attention writes the token before, the second's the token found.
            if place != 1:
                _set_gain(block.post_attention_layernorm, HUSHED if place else WRITTEN)


def _set_gain(norm: Any, gain: float, used: Tensor | slice = slice(None)) -> None:
    """Set what the norm multiplies by in these places; Gemma's norms hold the gain less 1."""
    norm.weight[used] = gain - 1.0 if type(norm).__name__.startswith("Gemma") else gain


def _sharpen(model: PreTrainedModel, attention: Any, used: Tensor, keys: int) -> None:
    """Bring the copying heads' queries and keys to a root mean square of `SHARPNESS`.

    Args:
        model: whose embeddings and blocks stand.
        attention: of the block.
        used: (places,) int64, those of a head that its queries and keys fill. A norm over each head
            is given its gain there, for the free heads too.
        keys: how many of the first key dimensions belong to copying heads.
    """
    if hasattr(attention, "q_norm"):
        _set_gain(attention.q_norm, SHARPNESS, used)
        _set_gain(attention.k_norm, SHARPNESS, used)
        return
    ids = torch.randint(model.config.vocab_size, _PROBE)
    groups = attention.q_proj.out_features // attention.k_proj.out_features
    for projection, rows in ((attention.q_proj, groups * keys), (attention.k_proj, keys)):
        found: list[Tensor] = []
        handle = projection.register_forward_hook(lambda *parts, into=found: into.append(parts[2]))
        try:
            model(ids)
        finally:
            handle.remove()
        size = math.sqrt(float(found[0][..., :rows].square().mean()))
        projection.weight[:rows] *= SHARPNESS / size


def _neighbours(size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return a query and a key, (head size,), that match best one position apart."""
    half = size // 2
    turns = theta ** (-torch.arange(half) / half)  # radians a position
    fast = (torch.arange(half) < FAST).float()
    here = torch.cat([fast, torch.zeros(half)])
    return here, torch.cat([fast * turns.cos(), fast * turns.sin()])


def _rows(at: Tensor, content: Tensor, size: int) -> Tensor:
    rows = torch.zeros(size, content.shape[1])
    rows[at] = content
    return rows
