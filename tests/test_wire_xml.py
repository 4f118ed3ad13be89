"""Qwen3-Coder: values of XML take their types from the menu."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from wire_texts import QWEN3_CODER, TEXTS, VALUES, only_call, same

from toolguard.guard.errors import ConfigError, ParseError
from toolguard.guard.tools import Menu, Tool, ToolCall

TYPED = Menu.of(
    [
        Tool(
            name="f",
            parameters={
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "count": {"type": "integer"},
                    "ratio": {"type": "number"},
                    "flag": {"type": "boolean"},
                    "many": {"type": "array"},
                    "maybe": {"type": ["string", "null"]},
                    "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
                    "choice": {"enum": ["1", "2"]},
                    "anything": {},
                },
            },
        )
    ]
)


def xml(key, value):
    return (
        f"<tool_call>\n<function=f>\n<parameter={key}>\n{value}\n</parameter>\n"
        "</function>\n</tool_call>"
    )


@pytest.mark.parametrize(
    ("key", "raw", "typed", "untyped"),
    [
        ("text", "94301", "94301", 94301),
        ("text", '"quoted"', '"quoted"', "quoted"),
        ("text", " two\nlines ", " two\nlines ", " two\nlines "),
        ("text", "", "", ""),
        ("count", "3", 3, 3),
        ("ratio", "3", 3, 3),
        ("flag", "True", True, "True"),
        ("flag", "false", False, False),
        ("many", '[1, "a"]', [1, "a"], [1, "a"]),
        ("maybe", "null", None, None),
        ("maybe", "3", "3", 3),
        ("either", "3", 3, 3),
        ("either", "three", "three", "three"),
        ("choice", "1", "1", 1),
        ("anything", "3", 3, 3),
        ("unknown", "{}", {}, {}),
    ],
)
def test_xml_values_take_their_type_from_the_menu(key, raw, typed, untyped):
    """With a schema text stays text; without one a JSON literal is that literal."""
    assert same(only_call(QWEN3_CODER, xml(key, raw), menu=TYPED), ("f", {key: typed}))
    assert same(only_call(QWEN3_CODER, xml(key, raw)), ("f", {key: untyped}))


@pytest.mark.parametrize(
    ("key", "raw"), [("count", "three"), ("count", "3.5"), ("flag", "yes"), ("many", "[1")]
)
def test_an_xml_value_that_does_not_fit_its_type_is_an_error(key, raw):
    """A value is never bent to its schema."""
    with pytest.raises(ParseError) as caught:
        QWEN3_CODER.parse(xml(key, raw), menu=TYPED)
    assert caught.value.fields["kind"] == "bad_arguments"


@settings(max_examples=40, deadline=None)
@given(text=TEXTS, count=st.integers(), either=st.one_of(st.integers(), TEXTS), anything=VALUES)
def test_xml_survives_with_a_menu(text, count, either, anything):
    """Writing and reading with the same menu gives the call back, or refuses to write it."""
    arguments = {"text": text, "count": count, "either": either, "anything": anything}
    call = ToolCall(name="f", arguments=arguments)
    try:
        written = QWEN3_CODER.render_calls([call], menu=TYPED)
    except ConfigError:
        assume(False)
    assert same(only_call(QWEN3_CODER, written, menu=TYPED), ("f", arguments))
