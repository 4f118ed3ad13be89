"""Wire formats: calls that are written are read back, and their names are found where they are."""

from __future__ import annotations

import json
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_texts import (
    ALL,
    GEMMA_FORMAT,
    HERMES_FORMAT,
    LLAMA_FORMAT,
    MARKS,
    MISTRAL_FORMAT,
    NAME_ONLY,
    PYTHONIC,
    QWEN3_CODER,
    WITH_ARGUMENTS,
    calls_for,
    names_found,
    same,
)

from toolguard.adapters.wire import NameSpan, ParsedTurn
from toolguard.guard.errors import ConfigError, ParseError
from toolguard.guard.tools import ToolCall


@pytest.mark.parametrize("wire", ALL, ids=lambda wire: wire.name)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_calls_survive_writing_and_reading(wire, data):
    """Parsing what was rendered gives the same names and arguments, types included."""
    calls = data.draw(st.lists(calls_for(wire), min_size=1, max_size=3))
    turn = wire.parse(wire.render_calls(calls))
    assert list(turn.calls) == calls
    assert same([dict(call.arguments) for call in turn.calls], [c.arguments for c in calls])
    assert turn.content == ""


@pytest.mark.parametrize("wire", ALL, ids=lambda wire: wire.name)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_names_are_found_where_parse_finds_them(wire, data):
    """The spans of find_name are the calls of parse: same names, same starts, in order."""
    calls = data.draw(st.lists(calls_for(wire), min_size=1, max_size=3))
    text = wire.render_calls(calls)
    parsed = wire.parse(text).calls
    spans = names_found(wire, text + "\n")
    assert [(span.name, span.start) for span in spans] == [(c.name, c.start) for c in parsed]
    for call in parsed:
        assert text.startswith(wire.spell(call.name), call.start)


@pytest.mark.parametrize("wire", ALL, ids=lambda wire: wire.name)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_name_being_written_is_an_open_span(wire, data):
    """Cut inside a name, the last span is open; cut later, that name is known and stays."""
    calls = data.draw(st.lists(calls_for(wire), min_size=1, max_size=2))
    text = wire.render_calls(calls)
    for index, call in enumerate(wire.parse(text).calls):
        spelled = wire.spell(call.name)
        # A newline after a bare name may also be the end: only a character opens the next one.
        first = 1 if index and wire is NAME_ONLY else 0
        for cut in range(first, len(spelled) + 1):
            *before, last = names_found(wire, text[: call.start + cut])
            assert last == NameSpan(start=call.start)
            assert [span.name for span in before] == [c.name for c in calls[:index]]


@pytest.mark.parametrize("wire", WITH_ARGUMENTS, ids=lambda wire: wire.name)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_turn_cut_short_is_an_error(wire, data):
    """No prefix of a call parses as fewer or other calls, or as content, once its name is open."""
    call = data.draw(calls_for(wire))
    text = wire.render_calls([call])
    opened = len(wire.prefix())
    whole = len(text)
    cut = data.draw(st.integers(opened, whole - 1))
    with pytest.raises(ParseError) as caught:
        wire.parse(text[:cut])
    assert 0 <= caught.value.fields["offset"] <= cut
    assert caught.value.fields["kind"] in ("truncated", "malformed")


@pytest.mark.parametrize("wire", WITH_ARGUMENTS, ids=lambda wire: wire.name)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_parse_and_find_name_agree_on_damaged_text(wire, data):
    """Of text that parse accepts, find_name saw the same names; a refusal has a place."""
    calls = data.draw(st.lists(calls_for(wire), min_size=1, max_size=2))
    text = wire.render_calls(calls)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        gone = data.draw(st.integers(0, 4))
        text = text[:at] + data.draw(st.one_of(MARKS, st.just(""))) + text[at + gone :]
    try:
        turn = wire.parse(text)
    except ParseError as error:
        refused = error.fields
    else:
        refused = None
    if refused is not None:
        assert 0 <= refused["offset"] <= len(text)
        assert refused["kind"]
        return
    spans = [span for span in names_found(wire, text) if span.name is not None]
    assert [(s.name, s.start) for s in spans] == [(c.name, c.start) for c in turn.calls]


@pytest.mark.parametrize("wire", WITH_ARGUMENTS, ids=lambda wire: wire.name)
@settings(max_examples=40, deadline=None)
@given(prose=st.text(string.ascii_letters + " .,!?\nä", max_size=60))
def test_prose_is_content(wire, prose):
    """A turn without marks has no calls, and its content is the text itself."""
    assert wire.parse(prose) == ParsedTurn(content=prose, calls=())
    assert wire.find_name(prose) is None


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (HERMES_FORMAT, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'),
        (LLAMA_FORMAT, '{"name": "f", "parameters": {"a": 1}}'),
        (MISTRAL_FORMAT, '[TOOL_CALLS]f[ARGS]{"a": 1}'),
        (
            QWEN3_CODER,
            "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        ),
        (PYTHONIC, "[f(a=1)]"),
        (GEMMA_FORMAT, '{"name": "f", "arguments": {"a": 1}}'),
    ],
)
def test_the_canonical_text_of_a_call(wire, expected):
    """A call is written as its family writes it, from the prefix to the promised end."""
    call = ToolCall(name="f", arguments={"a": 1})
    assert wire.call_text(call) == expected
    assert expected.startswith(wire.prefix() + "f")
    assert expected.endswith(wire.call_end())
    assert any(wire.may_open(character) for character in wire.prefix())
    assert wire.trigger in wire.prefix()


def test_name_only_is_the_name():
    """The published format has no prefix, no trigger and no arguments."""
    assert NAME_ONLY.call_text(ToolCall(name="get_weather")) == "get_weather"
    assert (NAME_ONLY.prefix(), NAME_ONLY.trigger, NAME_ONLY.call_end()) == ("", "", "")
    with pytest.raises(ConfigError, match="arguments"):
        NAME_ONLY.call_text(ToolCall(name="f", arguments={"a": 1}))


def test_several_calls_in_each_family():
    """Calls of one turn are joined as the family joins them."""
    calls = [ToolCall(name="f"), ToolCall(name="g")]
    assert LLAMA_FORMAT.render_calls(calls).count("; ") == 1
    assert MISTRAL_FORMAT.render_calls(calls) == "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{}"
    assert PYTHONIC.render_calls(calls) == "[f(), g()]"
    assert NAME_ONLY.render_calls(calls) == "f\ng"
    assert all(wire.render_calls([]) == "" for wire in ALL)


@pytest.mark.parametrize(
    ("wire", "names"),
    [
        (HERMES_FORMAT, ["", "\ud800"]),
        (LLAMA_FORMAT, [""]),
        (MISTRAL_FORMAT, ["", "a[b", "a{b", " a", "a\nb"]),
        (QWEN3_CODER, ["", "a>b", "a<b", "a\nb"]),
        (PYTHONIC, ["", "a-b", "class", "a..b", "a b", "1a", "a.None", "ﬁ"]),
        (NAME_ONLY, ["", "a\nb", " a", "a<|im_end|>", "<think>"]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_name_the_format_cannot_carry_is_refused(wire, names):
    """Writing such a name would give text that reads back as something else."""
    for name in names:
        with pytest.raises(ConfigError):
            wire.spell(name)


@pytest.mark.parametrize("wire", WITH_ARGUMENTS, ids=lambda wire: wire.name)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, (1, 2), {"s"}, "\udfff"])
def test_arguments_that_json_cannot_hold_are_refused(wire, value):
    """What would be written as something else, or not at all, is the caller's mistake."""
    with pytest.raises(ConfigError):
        wire.call_text(ToolCall(name="f", arguments={"a": value}))


def test_long_turns_are_read_in_linear_time():
    """A large argument, or a long run of half-opened marks, does not stall the guard."""
    big = ToolCall(name="f", arguments={"q": '\\"[{<(' * 40_000})
    started = time.perf_counter()
    for wire in WITH_ARGUMENTS:
        if wire is not QWEN3_CODER:
            text = wire.render_calls([big])
            assert wire.parse(text).calls == (big,)
        assert wire.find_name("[ " * 40_000 + "{ " * 40_000 + "``` " * 40_000) is None
    assert time.perf_counter() - started < 5


def test_json_texts_hold_whatever_json_holds():
    """A reader that knows only JSON agrees on the object between the marks."""
    call = ToolCall(name='a"b\\c\u2028ä', arguments={"k": [1, {"ü": None}]})
    body = HERMES_FORMAT.render_calls([call]).split("\n")[1]
    assert json.loads(body) == {"name": call.name, "arguments": call.arguments}
