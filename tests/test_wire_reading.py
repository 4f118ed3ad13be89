"""Wire formats: what models write is read as calls and content, and what is broken is refused."""

from __future__ import annotations

import pytest
from wire_texts import (
    ALL,
    GEMMA_FORMAT,
    HERMES_FORMAT,
    LLAMA_FORMAT,
    MISTRAL_FORMAT,
    NAME_ONLY,
    PYTHONIC,
    QWEN3_CODER,
    WITH_ARGUMENTS,
    names_found,
    only_call,
)

from toolguard.adapters.wire import opens_thought
from toolguard.guard.errors import ParseError
from toolguard.guard.tools import ToolCall


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
