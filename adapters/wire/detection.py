"""Which wire format a tokenizer's chat template speaks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.gemma_json import GemmaJson
from toolguard.adapters.wire.hermes import Hermes
from toolguard.adapters.wire.llama_json import LlamaJson
from toolguard.adapters.wire.mistral import Mistral
from toolguard.adapters.wire.name_only import NameOnly
from toolguard.adapters.wire.prompting import chat_template
from toolguard.adapters.wire.pythonic import Pythonic
from toolguard.adapters.wire.qwen3_coder import Qwen3Coder
from toolguard.guard.errors import ConfigError, UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMATS: Mapping[str, WireFormat] = MappingProxyType(
    {
        wire.name: wire
        for wire in (
            Hermes(),
            LlamaJson(),
            Mistral(),
            Qwen3Coder(),
            Pythonic(),
            GemmaJson(),
            NameOnly(),
        )
    }
)

_NAME_KEY = r'\\?["\']name\\?["\']'
# What a template of each format holds, every pattern of a row; the first row that fits wins. Rows
# with a more special mark stand first: Qwen3-Coder also writes <tool_call>, and a Gemma template
# made for tools also writes <start_of_turn>.
_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("qwen3_coder", (r"<function=",)),
    ("mistral", (r"\[TOOL_CALLS\]",)),
    ("hermes", (r"<tool_call>", r"\bname\b", r"\barguments\b")),
    ("pythonic", (r"\[\w+\(\w+=",)),
    ("pythonic", (r"<\|python_start\|>", r"(?i)pythonic")),
    ("llama_json", (r"<\|python_tag\|>",)),
    ("llama_json", (_NAME_KEY, r'\\?["\']parameters\\?["\']')),
    ("gemma_json", (r"<start_of_turn>",)),
)
# Formats that share a mark with one of ours and are not read here.
_FOREIGN = {
    "the Mistral list form from before v11": re.compile(r"\[TOOL_CALLS\]\s*\["),
    "FunctionGemma": re.compile(r"<start_function_call>"),
}


def get_format(name: str) -> WireFormat:
    """Return the wire format of this name.

    Raises:
        ConfigError: if there is none; lists those there are.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"unknown wire format {name!r}",
            hint=f"choose one of: {', '.join(FORMATS)}",
            found=name,
            expected=tuple(FORMATS),
        )
    return FORMATS[name]


def choose_format(name: str | None, tokenizer: PreTrainedTokenizerBase) -> WireFormat:
    """Return the wire format of this name, or the one of the chat template if there is no name.

    Raises:
        ConfigError: if there is no format of that name.
        UnsupportedModel: if the template shows none.
    """
    return detect_format(tokenizer) if name is None else get_format(name)


def detect_format(tokenizer: PreTrainedTokenizerBase) -> WireFormat:
    """Return the wire format whose marks stand in the tokenizer's chat template.

    Raises:
        UnsupportedModel: if there is no template, or it shows no format that is read here.
    """
    template = chat_template(tokenizer)
    hint = f"pass --format with one of: {', '.join(FORMATS)}"
    if template is None:
        raise UnsupportedModel(
            "the tokenizer has no chat template to detect a format from", hint=hint
        )
    for foreign, mark in _FOREIGN.items():
        if mark.search(template):
            raise UnsupportedModel(
                f"the chat template writes {foreign}, which is not read", hint=hint
            )
    for name, marks in _MARKS:
        if all(re.search(mark, template) for mark in marks):
            return FORMATS[name]
    raise UnsupportedModel("the chat template shows no known wire format", hint=hint)
