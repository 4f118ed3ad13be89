"""Hashes by which a profile recognises the model, tokenizer and chat template it was made with."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from toolguard.guard.errors import UnsupportedModel
from toolguard.guard.tools import canonical_json, sha256_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What decides the computation beside the weights. Names and paths are left out: a copied or renamed
# checkpoint is still the same model.
_CONFIG_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "layer_types",
    "tie_word_embeddings",
)
_SAMPLES = 256  # at least this many values of each parameter; all of a smaller one


def fingerprint_of(model: nn.Module) -> str:
    """Return a SHA-256 that differs between models and is equal wherever one model is loaded.

    It covers the config's essentials and evenly spaced values of every parameter, rounded to
    bfloat16: so device and loading dtype do not matter as long as the dtype holds what is stored.

    Args:
        model: a transformers model with all its weights in memory.

    Returns:
        64 hex digits.

    Raises:
        UnsupportedModel: if a parameter has no storage (offloaded).
    """
    config = cast("Any", model.config).get_text_config(decoder=True).to_dict()
    essentials = {key: config[key] for key in _CONFIG_KEYS if key in config}
    digest = hashlib.sha256(json.dumps(essentials, sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        if parameter.is_meta:
            raise UnsupportedModel(
                f"weight {name} is not in memory",
                hint="choose a --device that holds the whole model; offloading is not supported",
                parameter=name,
            )
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(_sampled_bytes(parameter.detach()))
    return digest.hexdigest()


def _sampled_bytes(parameter: Tensor) -> bytes:
    flat = parameter.reshape(-1)
    # An odd stride: an even one can divide the row length and meet the same columns in every row.
    sample = flat[:: max(1, flat.numel() // _SAMPLES) | 1].cpu()
    if sample.is_floating_point():
        sample = sample.to(torch.bfloat16)
    # numpy has no bfloat16, so the bytes are taken as unsigned integers.
    return sample.contiguous().view(torch.uint8).numpy().tobytes()


def tokenizer_hash_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 over everything that turns text into ids; 64 hex digits.

    Padding and truncation are left out: calls that pad leave their settings in the tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = {"vocab": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    else:
        rules = json.loads(backend.to_str())
        rules.pop("padding", None)
        rules.pop("truncation", None)
    return sha256_text(json.dumps(rules, sort_keys=True, default=str))


def template_hash_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 over the chat template (or the named templates); empty if there is none."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return ""
    return sha256_text(template if isinstance(template, str) else canonical_json(template))
