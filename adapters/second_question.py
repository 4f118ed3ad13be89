"""Asking the model once more, between two tools alone: a correction of doubtful calls.

The rest of the menu is left out of the prompt, the conversation and what the turn says so far are
the same. Nothing is generated: the tool is read where its name would be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.menu_plan import MenuPlan
from toolguard.adapters.turn_prompt import render_prompt
from toolguard.adapters.wire.base import WireFormat
from toolguard.guard.tools import Menu
from toolguard.guard.trie import ROOT, NameTrie, branch_log_probs


def favourite_between(
    loaded: LoadedModel,
    wire: WireFormat,
    messages: Sequence[Mapping[str, Any]],
    plan: MenuPlan,
    names: Sequence[str],
    written: Sequence[int],
) -> str:
    """Return which of a few tools the model calls if the menu holds no others.

    Args:
        loaded: the model.
        wire: how it writes calls.
        messages: HF chat format.
        plan: the whole menu.
        names: tools of it; they keep its order.
        written: tokens of the turn up to the decision token.

    Raises:
        ConfigError: if the conversation cannot be put under the smaller menu.
        ReadoutError: if the logits of the names are not finite.
    """
    menu = Menu(tuple(tool for tool in plan.menu if tool.name in names))
    prompt = render_prompt(loaded, wire, messages, menu, "").with_turn(written)
    trie = NameTrie({name: plan.names.paths[name] for name in menu.names})
    return _greedy_name(loaded, list(prompt.ids), trie)


@torch.inference_mode()
def _greedy_name(loaded: LoadedModel, tokens: list[int], trie: NameTrie) -> str:
    """Return the name whose tokens the model prefers, branch by branch."""
    cache = DynamicCache(config=loaded.model.config.get_text_config(decoder=True))
    node = ROOT
    while (name := trie.name_at(node)) is None:
        children = trie.children(node)
        best = 0
        if len(children) > 1:
            scores = branch_log_probs(_logits(loaded, tokens, cache), trie.child_ids(node))
            best = int(scores[0].argmax())
            tokens = []
        tokens.append(children[best])
        node = cast("int", trie.advance(node, children[best]))
    return name


def _logits(loaded: LoadedModel, tokens: Sequence[int], cache: DynamicCache) -> Tensor:
    """Return (1, vocab) logits after `tokens`, which follow what the cache holds."""
    output = loaded.model(
        input_ids=torch.tensor([tokens], device=loaded.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cast("Tensor", output.logits[0])
