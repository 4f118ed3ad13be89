"""Wire formats by short names, and what tests of them share: menus, random calls, readers."""

from __future__ import annotations

import string

from hypothesis import strategies as st

from toolguard.adapters.wire import FORMATS, get_format
from toolguard.guard.errors import ConfigError
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


def only_call(wire, text, **options):
    (call,) = wire.parse(text, **options).calls
    return call.name, dict(call.arguments)
