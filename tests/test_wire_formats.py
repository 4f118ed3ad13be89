"""Wire formats: what is written is read back, what is broken is refused, names are found early."""

from __future__ import annotations

import json
import string
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import GEMMA, HERMES, MISTRAL, PLAIN, TEMPLATES, with_template

from toolguard.adapters.wire import (
    FORMATS,
    NameSpan,
    ParsedTurn,
    detect_format,
    get_format,
    opens_thought,
)
from toolguard.adapters.wire.name_only import NameOnly
from toolguard.guard.errors import ConfigError, ParseError, UnsupportedModel
from toolguard.guard.tools import Menu, Tool, ToolCall

HERMES_FORMAT = get_format("hermes")
LLAMA_FORMAT = get_format("llama_json")
MISTRAL_FORMAT = get_format("mistral")
QWEN3_CODER = get_format("qwen3_coder")
PYTHONIC = get_format("pythonic")
GEMMA_FORMAT = get_format("gemma_json")
NAME_ONLY = get_format("name_only")
WITH_ARGUMENTS = [wire for name, wire in FORMATS.items() if name != "name_only"]
ALL = list(FORMATS.values())

MENU = Menu.of(
    [
        Tool(
            name="get_weather",
            description="Weather in a city",
            parameters={
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        ),
        Tool(name="search.web", description="Look something up"),
    ]
)

# Marks of every format, so that arguments and names try to look like something else.
MARKS = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "<think>",
            "</think>",
            "[THINK]",
            "[TOOL_CALLS]",
            "[ARGS]",
        ),
        *("<function=", "<parameter=", "</parameter>\n", "</function>", "```", "```json\n{", "; "),
        *(
            '{"name": "x"',
            '", "arguments": {}}',
            "[f(",
            ")]",
            "\n[g(",
            "<|python_tag|>",
            "<|im_end|>",
        ),
        *(
            '"',
            "'",
            "\\",
            "\\u0041",
            "true",
            "3",
            "null",
            "NaN",
            '"x"',
            "{}",
            "\n",
            " ",
            "#",
            "</s>",
        ),
    ]
)
TEXTS = st.lists(st.one_of(st.text(max_size=6), MARKS), max_size=4).map("".join)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
IDENTIFIERS = st.text(string.ascii_letters + string.digits + "_äé", min_size=1, max_size=12).filter(
    str.isidentifier
)
DOTTED = st.lists(IDENTIFIERS, min_size=1, max_size=3).map(".".join)


def carries(wire, call):
    try:
        wire.call_text(call)
    except ConfigError:
        return False
    return True


def calls_for(wire):
    """Give calls the format can carry; names and keys are mostly plain and sometimes wild."""
    # Wild names would nearly all be drawn in vain for a format that carries identifiers only.
    names = DOTTED if wire is PYTHONIC else st.one_of(DOTTED, TEXTS)
    keys = IDENTIFIERS if wire is PYTHONIC else st.one_of(IDENTIFIERS, TEXTS)
    arguments = st.dictionaries(keys, VALUES, max_size=3)
    if wire is NAME_ONLY:
        arguments = st.just({})
    call = st.builds(lambda name, args: ToolCall(name=name, arguments=args), names, arguments)
    return call.filter(lambda made: carries(wire, made))


def names_found(wire, text):
    """Follow find_name through the text, each search starting where the last name ended."""
    spans, at = [], 0
    while (span := wire.find_name(text, at)) is not None:
        spans.append(span)
        if span.end is None:
            break
        at = span.end
    return spans


def same(left, right):
    """Equal with types: Python holds 1, 1.0 and True for equal."""
    return repr(left) == repr(right)


# --- written and read back ---------------------------------------------------------------------


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


# --- reading what models write -----------------------------------------------------------------


def only_call(wire, text, **options):
    (call,) = wire.parse(text, **options).calls
    return call.name, dict(call.arguments)


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (HERMES_FORMAT, '<tool_call>{"name":"f","arguments":{"a":1}}</tool_call>'),
        (HERMES_FORMAT, '<tool_call>\n\n{ "arguments" : {"a": 1},\n"name" : "f" }\n</tool_call>'),
        (
            HERMES_FORMAT,
            '<tool_call>\n{"n\\u0061me": "\\u0066", "arguments": {"a": 1}}</tool_call>',
        ),
        (LLAMA_FORMAT, '<|python_tag|>{"name": "f", "parameters": {"a": 1}}<|eom_id|>'),
        (LLAMA_FORMAT, '{"type": "function", "name": "f", "parameters": {"a": 1}}'),
        (LLAMA_FORMAT, '\n{"name":"f","arguments":{"a":1}}'),
        (LLAMA_FORMAT, '{"parameters": {"a": 1}, "name": "f"}<|eot_id|>'),
        (MISTRAL_FORMAT, '[TOOL_CALLS]f{"a": 1}</s>'),
        (MISTRAL_FORMAT, '[TOOL_CALLS] f [CALL_ID]abcdefghi[ARGS] {"a": 1}'),
        (
            QWEN3_CODER,
            "<tool_call><function=f><parameter=a>1</parameter></function></tool_call><|im_end|>\n",
        ),
        (PYTHONIC, "<|python_start|>[ f( a = 1, ) ]<|python_end|>"),
        (PYTHONIC, "[f(\n  a=+1\n)]"),
        (GEMMA_FORMAT, '```json\n{"name": "f", "arguments": {"a": 1}}\n```<end_of_turn>'),
        (GEMMA_FORMAT, '{"name": "f", "parameters": {"a": 1}}'),
    ],
)
def test_other_spellings_of_the_same_call(wire, text):
    """White space, member order, escapes and the family's optional marks make no difference."""
    assert only_call(wire, text) == ("f", {"a": 1})
    assert [span.name for span in names_found(wire, text)] == ["f"]


@pytest.mark.parametrize(
    ("wire", "text", "names", "content"),
    [
        (
            HERMES_FORMAT,
            (
                'First.\n<tool_call>{"name":"f","arguments":{}}</tool_call>\nThen.\n'
                '<tool_call>{"name":"g","arguments":{}}</tool_call>\nDone.'
            ),
            ["f", "g"],
            "First.\nThen.\nDone.",
        ),
        (
            LLAMA_FORMAT,
            'Sure: {"name": "f", "parameters": {}} ; {"name": "g", "parameters": {}}',
            ["f", "g"],
            "Sure:",
        ),
        (LLAMA_FORMAT, '{"answer": {"name": "f"}}', [], '{"answer": {"name": "f"}}'),
        (MISTRAL_FORMAT, "Well. [TOOL_CALLS]f{}\n[TOOL_CALLS]g[ARGS]{}", ["f", "g"], "Well."),
        (
            GEMMA_FORMAT,
            '```\n{"name": "f", "arguments": {}}\n{"name": "g", "arguments": {}}\n```\nDone.',
            ["f", "g"],
            "Done.",
        ),
        (PYTHONIC, "Sure.\n[f(), a.g()]\nDone.", ["f", "a.g"], "Sure.\nDone."),
        (
            PYTHONIC,
            "Use xs[f(1)] or [1, 2] or [link](url).",
            [],
            "Use xs[f(1)] or [1, 2] or [link](url).",
        ),
        (PYTHONIC, "[see below] and\n[a, b]", [], "[see below] and\n[a, b]"),
        (NAME_ONLY, "f\ng\n", ["f", "g"], ""),
    ],
)
def test_calls_and_content_are_told_apart(wire, text, names, content):
    """Text around calls is kept as content, and data that is no call is left alone."""
    turn = wire.parse(text)
    assert [call.name for call in turn.calls] == names
    assert turn.content == content


@pytest.mark.parametrize("wire", ALL, ids=lambda wire: wire.name)
@pytest.mark.parametrize("marks", [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
def test_calls_inside_a_thought_are_not_calls(wire, marks):
    """Only what stands after the thought counts, and a thought without end is content."""
    opening, closing = marks
    thought = wire.render_calls([ToolCall(name="inner")])
    call = wire.render_calls([ToolCall(name="outer")])
    text = f"{opening}\n{thought}\n{closing}\n{call}"
    turn = wire.parse(text)
    assert [c.name for c in turn.calls] == ["outer"]
    assert turn.content == f"{opening}\n{thought}\n{closing}"
    span = wire.find_name(text)
    assert span is not None
    assert span.start == turn.calls[0].start
    endless = f"{opening}\n{thought}\n"
    assert wire.parse(endless).calls == ()
    assert wire.parse(endless).content == endless
    assert wire.find_name(endless) is None


@pytest.mark.parametrize("wire", WITH_ARGUMENTS, ids=lambda wire: wire.name)
def test_a_call_quoted_in_an_argument_is_not_found(wire):
    """A search that starts behind the name does not mistake argument text for another call."""
    quoted = wire.render_calls([ToolCall(name="inner")])
    text = wire.render_calls([ToolCall(name="outer", arguments={"q": f"<think>\n{quoted}"})])
    assert [span.name for span in names_found(wire, text)] == ["outer"]
    assert [call.name for call in wire.parse(text).calls] == ["outer"]


def test_a_prompt_that_opens_a_thought_says_so():
    """The caller learns which mark to put in front of the generated text."""
    assert opens_thought("<|im_start|>assistant\n<think>\n") == "<think>"
    assert opens_thought("[INST]x[/INST][THINK]") == "[THINK]"
    assert opens_thought("<think>\n\n</think>\n\n") is None
    assert opens_thought("<|im_start|>assistant\n") is None


@pytest.mark.parametrize(
    ("wire", "text", "kind"),
    [
        (HERMES_FORMAT, "Use the <tool_call> tag.", "malformed"),
        (HERMES_FORMAT, '{"name": "f", "arguments": {}}\n</tool_call>', "unopened"),
        (HERMES_FORMAT, '<tool_call>{"name": "f", "arguments": {}}', "truncated"),
        (HERMES_FORMAT, '<tool_call>{"name": "f", "arguments": {}} and', "malformed"),
        (HERMES_FORMAT, '<tool_call>{"name": "f", "arguments": {"a": tru', "truncated"),
        (HERMES_FORMAT, '<tool_call>{"name": "f", "arguments": {"a": "x\\u00', "truncated"),
        (HERMES_FORMAT, '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "bad_arguments"),
        (HERMES_FORMAT, '<tool_call>{"name": "f", "arguments": []}</tool_call>', "bad_arguments"),
        (HERMES_FORMAT, '<tool_call>{"name": "f"}</tool_call>', "bad_arguments"),
        (HERMES_FORMAT, '<tool_call>{"name": 3, "arguments": {}}</tool_call>', "bad_name"),
        (HERMES_FORMAT, '<tool_call>{"name": "", "arguments": {}}</tool_call>', "bad_name"),
        (HERMES_FORMAT, '<tool_call>{"arguments": {}}</tool_call>', "bad_name"),
        (
            HERMES_FORMAT,
            '<tool_call>{"name": "f", "arguments": {}, "x": 1}</tool_call>',
            "unexpected_key",
        ),
        (
            HERMES_FORMAT,
            '<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>',
            "duplicate_key",
        ),
        (
            HERMES_FORMAT,
            '<tool_call>{"name": "f", "arguments": {"a": 1, "a": 2}}</tool_call>',
            "duplicate_key",
        ),
        (
            HERMES_FORMAT,
            '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
            "not_a_number",
        ),
        (
            HERMES_FORMAT,
            '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>',
            "not_a_number",
        ),
        (
            HERMES_FORMAT,
            '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>",
            "not_a_number",
        ),
        (
            HERMES_FORMAT,
            '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>',
            "lone_surrogate",
        ),
        (HERMES_FORMAT, '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 9999, "too_deep"),
        (HERMES_FORMAT, "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>", "malformed"),
        (HERMES_FORMAT, '<tool_call>{"name": "f\n", "arguments": {}}</tool_call>', "malformed"),
        (HERMES_FORMAT, '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>', "malformed"),
        (LLAMA_FORMAT, '{"na', "truncated"),
        (LLAMA_FORMAT, '{"name": "f", "parameters": {}};', "truncated"),
        (LLAMA_FORMAT, '{"name": "f", "parameters": {}}; {"a": 1}', "unexpected_key"),
        (LLAMA_FORMAT, '{"name": "f", "parameters": {}, "arguments": {}}', "bad_arguments"),
        (LLAMA_FORMAT, '<|python_tag|>print("x")', "malformed"),
        (LLAMA_FORMAT, '{"type": "object", "name": "f", "parameters": {}}', "unexpected_key"),
        (GEMMA_FORMAT, '```json\n{"name": "f", "arguments": {}}', "truncated"),
        (GEMMA_FORMAT, '```json\n{"na', "truncated"),
        (MISTRAL_FORMAT, "The [TOOL_CALLS] token", "truncated"),
        (MISTRAL_FORMAT, "The [ARGS] token", "unopened"),
        (MISTRAL_FORMAT, '[TOOL_CALLS] [{"name": "f", "arguments": {}}]', "bad_name"),
        (MISTRAL_FORMAT, "[TOOL_CALLS]f[ARGS]", "truncated"),
        (MISTRAL_FORMAT, "[TOOL_CALLS]f[AR", "truncated"),
        (MISTRAL_FORMAT, "[TOOL_CALLS]f{}g{}", "malformed"),
        (MISTRAL_FORMAT, "[TOOL_CALLS]f[ARGS][]", "malformed"),
        (QWEN3_CODER, "<function=f>\n</function>", "unopened"),
        (QWEN3_CODER, "<tool_call><function=f></function>", "truncated"),
        (QWEN3_CODER, '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "malformed"),
        (QWEN3_CODER, "<tool_call><function=f<b></function></tool_call>", "bad_name"),
        (
            QWEN3_CODER,
            "<tool_call><function=f><parameter=a>1<parameter=b>2</parameter></function></tool_call>",
            "malformed",
        ),
        (
            QWEN3_CODER,
            (
                "<tool_call><function=f><parameter=a>1</parameter><parameter=a>2</parameter>"
                "</function></tool_call>"
            ),
            "duplicate_key",
        ),
        (PYTHONIC, "[f(a=1)", "truncated"),
        (PYTHONIC, '[f(a="x', "truncated"),
        (PYTHONIC, "[f(a=1), ", "truncated"),
        (PYTHONIC, "[f(a=1),]", "malformed"),
        (PYTHONIC, "[f(a=1) g()]", "malformed"),
        (PYTHONIC, "[f(1)]", "bad_arguments"),
        (PYTHONIC, "[f(**{'a': 1})]", "malformed"),
        (PYTHONIC, "[f(a=g())]", "bad_arguments"),
        (PYTHONIC, "[f(a=b)]", "bad_arguments"),
        (PYTHONIC, "[f(a={1: 2})]", "bad_arguments"),
        (PYTHONIC, "[f(a={'x': 1, 'x': 2})]", "duplicate_key"),
        (PYTHONIC, "[f(a=1, a=2)]", "duplicate_key"),
        (PYTHONIC, "[f(a=1e999)]", "not_a_number"),
        (PYTHONIC, "[f(a='\\ud800')]", "lone_surrogate"),
        (PYTHONIC, "[f(a=r'x')]", "malformed"),
        (PYTHONIC, "[f(a='\\d')]", "malformed"),
        (PYTHONIC, "[f(a=0x1f)]", "malformed"),
        (PYTHONIC, "[f(a=1 # b\n)]", "malformed"),
        (PYTHONIC, "[f(a=(1])]", "malformed"),
        (PYTHONIC, "[f.(a=1)]", "bad_name"),
        (PYTHONIC, "[not (a)]", "bad_name"),
        (PYTHONIC, "[f(a=" + "[" * 300 + "]" * 300 + ")]", "malformed"),
        (PYTHONIC, "[f(ﬁ=1)]", "malformed"),
        (NAME_ONLY, "f<|im_end|>g", "trailing_text"),
        (NAME_ONLY, "f\n<think>", "bad_name"),
    ],
)
def test_what_is_not_well_formed_is_an_error_with_place_and_kind(wire, text, kind):
    """Nothing is skipped or repaired, and neither message nor fields quote the text."""
    with pytest.raises(ParseError) as caught:
        wire.parse(text)
    assert caught.value.fields["kind"] == kind
    assert set(caught.value.fields) == {"offset", "kind"}
    assert 0 <= caught.value.fields["offset"] <= len(text)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_pythonic_literals():
    """Every literal JSON can hold is read, in Python's spelling or JSON's; tuples become lists."""
    text = """[a.f(s='it\\'s', t="\\u00e4", i=-3, x=1.5e3, n=[1, (2, 3)], o={'k': {"l": null}}, """
    text += "yes=True, no=false, none=None)]"
    assert only_call(PYTHONIC, text) == (
        "a.f",
        {
            "s": "it's",
            "t": "ä",
            "i": -3,
            "x": 1500.0,
            "n": [1, [2, 3]],
            "o": {"k": {"l": None}},
            "yes": True,
            "no": False,
            "none": None,
        },
    )


# --- Qwen3-Coder and the types of values -------------------------------------------------------

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


# --- prompts -----------------------------------------------------------------------------------

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


# --- detection ---------------------------------------------------------------------------------


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
