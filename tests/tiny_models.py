"""Tiny models with random weights for every family, and a tiny tokenizer with a tool template.

Built from configs in milliseconds, nothing is downloaded; equal seeds give equal weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>")

HERMES_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'You can use these tools:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\nWrite a call as\\n<tool_call>\\n{"name": NAME, "arguments": OBJECT}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function or call %}
            {%- if message.content or not loop.first %}{{- '\\n' }}{%- endif %}
            {{- '<tool_call>\\n{"name": ' + (function.name | tojson) + ', "arguments": ' }}
            {{- function.arguments if function.arguments is string else (function.arguments | tojson) }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""  # noqa: E501

# Names with common beginnings, so that some merge and some split only at the closing quote.
CORPUS = (
    'You can use these tools:\n<tools>\n{"type": "function", "function": {"name": "get_weather", ',
    '"description": "Return the weather of a city.", "parameters": {"type": "object", ',
    '"properties": {"city": {"type": "string"}}, "required": ["city"]}}}\n</tools>',
    '{"name": "get_weather", "arguments": {"city": "Paris"}}',
    '{"name": "get_time", "arguments": {"zone": "Europe/Berlin"}}',
    '{"name": "search", "arguments": {"query": "cheap flights"}}',
    '{"name": "searchWeb", "arguments": {"query": "news"}}',
    '{"name": "send_email", "arguments": {"to": "a@b.example", "body": "hello"}}',
    "Write a call as NAME and OBJECT, system, user, assistant, tool response",
    "What is the weather in Rome today? Set an alarm for seven. Please call me a taxi.",
)


def tiny_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a Hermes-style chat template; any text round-trips."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=HERMES_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens(list(TAGS))
    return tokenizer


def _sizes(vocab_size: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _plain(config: type[PreTrainedConfig], **extra: Any) -> Callable[[int, int], PreTrainedConfig]:
    return lambda vocab, layers: config(**_sizes(vocab, layers), **extra)


def _gpt2(vocab: int, layers: int) -> PreTrainedConfig:
    return transformers.GPT2Config(
        vocab_size=vocab,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        n_positions=4096,
        bos_token_id=2,
        eos_token_id=2,
    )


def _gpt_neox(vocab: int, layers: int) -> PreTrainedConfig:
    sizes = _sizes(vocab, layers)
    del sizes["num_key_value_heads"]
    return transformers.GPTNeoXConfig(**sizes)


def _gemma3(vocab: int, layers: int) -> PreTrainedConfig:
    return transformers.Gemma3Config(
        text_config={**_sizes(vocab, layers), "head_dim": 8},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_index=vocab - 1,
        boi_token_index=vocab - 2,
        eoi_token_index=vocab - 3,
        mm_tokens_per_image=4,
    )


CONFIGS: Mapping[str, Callable[[int, int], PreTrainedConfig]] = {
    "qwen2": _plain(transformers.Qwen2Config),
    "qwen3": _plain(transformers.Qwen3Config, head_dim=8),
    "qwen3_moe": _plain(
        transformers.Qwen3MoeConfig,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    ),
    "llama": _plain(transformers.LlamaConfig),
    "mistral": _plain(transformers.MistralConfig),
    "gemma2": _plain(transformers.Gemma2Config, head_dim=8),
    "gemma3_text": _plain(transformers.Gemma3TextConfig, head_dim=8),
    "gemma3": _gemma3,
    "phi3": _plain(transformers.Phi3Config),
    "olmo2": _plain(transformers.Olmo2Config),
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
}


def tiny_model(
    family: str = "qwen3",
    *,
    vocab_size: int = 400,
    layers: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Return a model of `family` with random weights, in evaluation mode, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](vocab_size, layers))
    return model.to(dtype).eval()


def save_tiny(folder: Path, family: str = "qwen3", **options: Any) -> Path:
    """Write a tiny model with its tokenizer to `folder`, as a checkpoint that loads from disk."""
    tokenizer = tiny_tokenizer()
    tiny_model(family, vocab_size=len(tokenizer), **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
