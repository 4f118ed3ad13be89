"""An agent's shape and tokenizer: a small decoder with its own byte-level BPE.

The reference agent is a Qwen3; the other families are for comparing what is read off them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, cast, get_args

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from toolguard.calibration.training.copying_start import start_copying

Family = Literal["qwen3", "qwen2", "llama", "gemma3"]
FAMILIES: tuple[Family, ...] = get_args(Family)

VOCABULARY = 4096
HEAD = 32  # width of an attention head: many narrow ones leave room for copying
CONTEXT = 8192  # positions; the 64-tool menu of HWU64 and the airline policy fit
# Spaces and digits stand alone and punctuation of JSON goes in runs, so that a word has the same
# tokens in a query, in a tool's name and in an argument: a small model can then copy it.
PIECES = r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+( [^\s\p{L}\p{N}]+)*|\s"
PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MARKUP = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large the agent is.

    Args:
        width: hidden size, a multiple of 64.
        layers: number of blocks.
        family: architecture of the blocks.
    """

    width: int = 256
    layers: int = 4
    family: Family = "qwen3"


DEFAULT_SHAPE = Shape()
"""About 4.2 million parameters."""


def chat_template() -> str:
    """Return the agent's Jinja chat template."""
    folder = resources.files("toolguard.calibration.training")
    return folder.joinpath("chat_template.jinja").read_text("utf-8").rstrip("\n")


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of at most `VOCABULARY` entries, with the chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKUP),
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=TURN_END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    # Markup is atomic but ordinary text: a parser must still see it after skip_special_tokens.
    tokenizer.add_tokens(list(MARKUP))
    tokenizer.chat_template = chat_template()
    return tokenizer


def build_agent(
    tokenizer: PreTrainedTokenizerFast, shape: Shape = DEFAULT_SHAPE
) -> PreTrainedModel:
    """Return an untrained agent in float32; its weights depend on torch's seed alone."""
    model = _untrained(
        shape.family,
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=3 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // HEAD,
        num_key_value_heads=shape.width // HEAD // 2,
        head_dim=HEAD,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=_id_of(tokenizer, TURN_END),
        pad_token_id=_id_of(tokenizer, PAD),
    )
    start_copying(model)
    return model


def _untrained(family: Family, **common: Any) -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    if family == "gemma3":
        # Every second block looks through a window, which here is as wide as the context.
        config = Gemma3TextConfig(
            **common,
            query_pre_attn_scalar=HEAD,
            sliding_window=CONTEXT,
            layer_types=[
                ("sliding_attention", "full_attention")[at % 2]
                for at in range(common["num_hidden_layers"])
            ],
            rope_parameters={"sliding_attention": rope, "full_attention": dict(rope)},
        )
        return Gemma3ForCausalLM(config)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**common, rope_parameters=rope))
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**common, rope_parameters=rope))
    return Qwen3ForCausalLM(Qwen3Config(**common, rope_parameters=rope))


def _id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return cast("int", cast("Any", tokenizer).convert_tokens_to_ids(token))
