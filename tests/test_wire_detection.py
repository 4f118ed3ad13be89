"""Wire formats are known by the chat template, or by name."""

from __future__ import annotations

import pytest
from tiny_tokenizers import HERMES, PLAIN, TEMPLATES, with_template

from toolguard.adapters.wire import FORMATS, detect_format, get_format
from toolguard.guard.errors import ConfigError, UnsupportedModel


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_each_family_is_known_by_its_template(name):
    """The marks in the template name the format."""
    assert detect_format(with_template(TEMPLATES[name])).name == name


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ('{{ "<tool_call>\\n{\\"name\\": N, \\"arguments\\": A}" }}', "hermes"),
        ('{{ "<tool_call><function=" }}{{ "arguments name" }}', "qwen3_coder"),
        ('{{ "<|python_tag|>" }}', "llama_json"),
        ('Give {"name": N, "parameters": P}', "llama_json"),
        ("{'name': N, 'parameters': P}", "llama_json"),
        ('{{ "[TOOL_CALLS]" + name + "[ARGS]" }}', "mistral"),
        ("[func_a(x=1), func_b(y=2)] <|python_tag|>", "pythonic"),
        ("<start_of_turn>", "gemma_json"),
    ],
)
def test_marks_in_a_template(template, name):
    """The most special mark wins."""
    assert detect_format(with_template(template)).name == name


def test_a_template_for_tools_among_several_decides():
    """Tokenizers may keep one template for chat and one for tools."""
    tokenizer = with_template({"default": PLAIN, "tool_use": HERMES})
    assert detect_format(tokenizer).name == "hermes"


@pytest.mark.parametrize(
    "template",
    [None, PLAIN, "<|channel|>commentary", '[TOOL_CALLS] [{"name": 1}]', "<start_function_call>"],
)
def test_an_unknown_template_is_refused_with_the_way_out(template):
    """Guessing a format would read the wrong token; the hint lists what can be passed."""
    with pytest.raises(UnsupportedModel) as caught:
        detect_format(with_template(template))
    assert "--format" in caught.value.hint
    assert "hermes" in caught.value.hint


def test_formats_are_known_by_name():
    """The table holds the seven formats, and an unknown name lists them."""
    assert set(FORMATS) == {*TEMPLATES, "name_only"}
    assert all(get_format(name).name == name for name in FORMATS)
    with pytest.raises(ConfigError, match="unknown wire format") as caught:
        get_format("xml")
    assert all(name in caught.value.hint for name in FORMATS)
