"""Wire formats: prompts tell the tools, through the template where it has words for them."""

from __future__ import annotations

import pytest
from tiny_tokenizers import GEMMA, HERMES, MISTRAL, PLAIN, TEMPLATES, with_template
from wire_texts import (
    ALL,
    GEMMA_FORMAT,
    HERMES_FORMAT,
    LLAMA_FORMAT,
    MENU,
    MISTRAL_FORMAT,
    NAME_ONLY,
    WITH_ARGUMENTS,
)

from toolguard.adapters.wire import FORMATS
from toolguard.adapters.wire.name_only import NameOnly
from toolguard.guard.errors import ConfigError, UnsupportedModel

QUESTION = {"role": "user", "content": "How warm is it in Oslo?"}
CALL = {
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
}
HISTORY = [
    {"role": "system", "content": "Be brief."},
    QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "get_weather", "content": "12 degrees"},
    {"role": "user", "content": "And tomorrow?"},
]


@pytest.mark.parametrize("name", ["hermes", "llama_json", "mistral", "qwen3_coder", "pythonic"])
def test_a_template_that_carries_tools_is_used_as_it_is(name):
    """The prompt is the template's own, tools included, with none of our words."""
    tokenizer = with_template(TEMPLATES[name])
    prompt = FORMATS[name].render(tokenizer, [QUESTION], MENU)
    assert prompt == tokenizer.apply_chat_template(
        [QUESTION], tools=MENU.schemas(), tokenize=False, add_generation_prompt=True
    )
    assert "search.web" in prompt
    assert "You can use these tools" not in prompt


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_conversations_with_calls_and_results_render(name):
    """System text, earlier calls and their results all reach the prompt, in the family's form."""
    prompt = FORMATS[name].render(with_template(TEMPLATES[name]), HISTORY, MENU)
    for told in ("get_weather", "search.web", "12 degrees", "And tomorrow?"):
        assert told in prompt
    if name not in ("mistral", "llama_json", "pythonic", "qwen3_coder"):
        assert "Be brief." in prompt
    if name != "pythonic":
        assert "Oslo" in prompt.split("How warm is it in Oslo?")[1]


@pytest.mark.parametrize("wire", ALL, ids=lambda wire: wire.name)
@pytest.mark.parametrize("template", [PLAIN, GEMMA], ids=["plain", "gemma"])
def test_our_words_where_the_template_has_none(wire, template):
    """A template without tools, even without a system role, gets them told in the conversation."""
    prompt = wire.render(with_template(template), HISTORY, MENU)
    assert wire.how_to_call in prompt
    for told in ("get_weather", "search.web", "Be brief.", "12 degrees", "And tomorrow?"):
        assert told in prompt
    assert prompt.endswith("assistant\n" if template == PLAIN else "<start_of_turn>model\n")


def test_a_template_that_takes_tools_and_drops_them_gets_our_words():
    """Knowing the word is not enough: every tool must stand in the prompt."""
    template = "{% if tools %}{% endif %}" + PLAIN
    prompt = HERMES_FORMAT.render(with_template(template), [QUESTION], MENU)
    assert HERMES_FORMAT.how_to_call in prompt
    assert "search.web" in prompt


def test_gemma_has_no_system_turn():
    """The instructions open the first user turn, after the user's own system text."""
    prompt = GEMMA_FORMAT.render(with_template(GEMMA), HISTORY, MENU)
    assert prompt.startswith("<start_of_turn>user\nBe brief.\n\nYou can use these tools")
    assert '{"name": "get_weather", "arguments": {"city": "Oslo"}}<end_of_turn>' in prompt
    assert "Result of get_weather:\n12 degrees\n\nAnd tomorrow?" in prompt


def test_name_only_tells_names_alone_unless_asked():
    """The published menu has no descriptions; they are an option."""
    tokenizer = with_template(PLAIN)
    assert "Weather in a city" not in NAME_ONLY.render(tokenizer, [QUESTION], MENU)
    described = NameOnly(descriptions=True).render(tokenizer, [QUESTION], MENU)
    assert "- get_weather: Weather in a city\n" in described


def test_without_a_chat_template_only_name_only_renders():
    """Plain text serves the one format that needs no roles; the others say what to do."""
    tokenizer = with_template(None)
    prompt = NAME_ONLY.render(tokenizer, HISTORY, MENU)
    assert prompt.endswith("\n\nAnd tomorrow?\nTool:\n")
    for wire in WITH_ARGUMENTS:
        with pytest.raises(UnsupportedModel, match="no chat template") as caught:
            wire.render(tokenizer, [QUESTION], MENU)
        assert "name_only" in caught.value.hint


def test_mistral_templates_get_the_ids_they_demand():
    """Calls without an id, or with a foreign one, get nine characters, and results the same."""
    foreign = [
        QUESTION,
        {
            "role": "assistant",
            "tool_calls": [{**CALL, "id": "call_1"}, {**CALL, "id": "abc123XYZ"}],
        },
        {"role": "tool", "content": "late", "tool_call_id": "abc123XYZ"},
        {"role": "tool", "content": "early", "tool_call_id": "call_1"},
    ]
    tokenizer = with_template(MISTRAL)
    prompt = MISTRAL_FORMAT.render(tokenizer, foreign, MENU)
    first, second = (part[:9] for part in prompt.split("[CALL_ID]")[1:])
    assert second == "abc123XYZ"
    assert f"{second}[TOOL_CONTENT]late" in prompt
    assert f"{first}[TOOL_CONTENT]early" in prompt
    history = MISTRAL_FORMAT.render(tokenizer, HISTORY, MENU)
    given = history.split("[CALL_ID]")[1][:9]
    assert f"{given}[TOOL_CONTENT]12 degrees" in history


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"content": "x"}],
        [{"role": "user", "content": 3}],
        [{"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{} x"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}],
    ],
)
def test_a_malformed_conversation_is_refused(messages):
    """What no template could render faithfully is the caller's mistake, not an empty turn."""
    with pytest.raises(ConfigError):
        HERMES_FORMAT.render(with_template(HERMES), messages, MENU)


def test_a_template_that_refuses_is_a_typed_error():
    """The template's own reason is passed on."""
    template = "{{ tools | length }}{{ raise_exception('one call at a time') }}"
    with pytest.raises(ConfigError, match="one call at a time"):
        LLAMA_FORMAT.render(with_template(template), [QUESTION], MENU)
