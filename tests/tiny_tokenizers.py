"""Tokenizers trained in the test on a few lines, and chat templates in the shape of each family."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|eot|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<tool_call>",
    "</tool_call>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[ARGS]",
)

CORPUS = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "search", "arguments": {"q": "x"}}\n</tool_call>',
    '<tool_call>\n{"name": "searchWeb", "arguments": {}}\n</tool_call>',
    '{"name": "search", "parameters": {}}',
    "[TOOL_CALLS]get_weather[ARGS]{}",
    "<function=get_time>\n</function>",
    "[get_weather(city=1), search()]",
    "get_weather\nget_time\nsearch\n",
)

# As large vocabularies split: words take one leading sign or space, signs take their newlines.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
# Signs never join letters.
APART = r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s+"

HERMES = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}Tools at hand:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Write {"name": NAME, "arguments": OBJECT} inside <tool_call></tool_call>.<|im_end|>
{% endif %}{% for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>{{ message.content }}</tool_response><|im_end|>
{% elif message.role != 'system' or not tools %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

QWEN3_CODER = """\
{%- if tools %}<|im_start|>system
You have:
{% for tool in tools %}<function><name>{{ tool.function.name }}</name></function>
{% endfor %}Call with <tool_call><function=NAME><parameter=P>V</parameter></function></tool_call>
<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
<function={{ call.function.name }}>
{% for key, value in call.function.arguments | items %}<parameter={{ key }}>
{{ value }}
</parameter>
{% endfor %}</function>
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if tools and loop.first %}Functions:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Reply as {"name": NAME, "parameters": OBJECT}.
{% endif %}{% if message.tool_calls %}{% set call = message.tool_calls[0].function %}\
<|python_tag|>{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}\
{% else %}{{ message.content }}{% endif %}<|eot|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant

{% endif %}"""

PYTHONIC = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if tools and loop.first %}Functions: {{ tools | tojson }}
Reply with [name_1(argument_1=value_1), name_2(argument_2=value_2)].
{% endif %}{{ message.content }}<|eot|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant

{% endif %}"""

MISTRAL = """\
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}\
{% for message in messages %}{% if message.role == 'user' %}[INST]{{ message.content }}[/INST]\
{% elif message.role == 'tool' %}{% if message.tool_call_id | length != 9 %}\
{{ raise_exception('ids have nine characters') }}{% endif %}\
[TOOL_RESULTS]{{ message.tool_call_id }}[TOOL_CONTENT]{{ message.content }}[/TOOL_RESULTS]\
{% elif message.tool_calls %}{% for call in message.tool_calls %}{% if call.id | length != 9 %}\
{{ raise_exception('ids have nine characters') }}{% endif %}\
[TOOL_CALLS]{{ call.function.name }}[CALL_ID]{{ call.id }}\
[ARGS]{{ call.function.arguments | tojson }}\
{% endfor %}</s>{% else %}{{ message.content }}</s>{% endif %}{% endfor %}"""

GEMMA = """\
{%- for message in messages %}{% if message.role not in ['user', 'assistant'] %}\
{{ raise_exception('no such role') }}{% endif %}\
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate') }}{% endif %}\
<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

PLAIN = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TEMPLATES = {
    "hermes": HERMES,
    "llama_json": LLAMA,
    "mistral": MISTRAL,
    "qwen3_coder": QWEN3_CODER,
    "pythonic": PYTHONIC,
    "gemma_json": GEMMA,
}


def byte_level_bpe(split: str | None = WORDS, *, corpus: Iterable[str] = CORPUS, merges: int = 120):
    """Return a byte-level BPE tokenizer; `split` None lets any two characters merge."""
    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if split is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(split), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(SPECIAL) + merges,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


@cache
def _shared():
    return byte_level_bpe()


def with_template(template: str | None, tokenizer: Tokenizer | None = None):
    """Return a fast tokenizer with this chat template."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer or _shared(), eos_token="<|im_end|>")
    fast.chat_template = template
    return fast
