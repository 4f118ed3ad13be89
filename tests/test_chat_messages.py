"""LangChain messages as HF chat turns, and `tool_choice` in all its forms."""

from __future__ import annotations

import pytest
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from toolguard.adapters.chat.messages import chat_messages
from toolguard.adapters.chat.tool_choice import ToolChoice
from toolguard.guard.errors import ConfigError

CALL = {"name": "search", "args": {"query": "x"}, "id": "call_1"}


def test_a_whole_conversation_keeps_calls_and_results() -> None:
    """System, user, assistant with a call, and its result arrive with ids, names and objects."""
    turns = chat_messages(
        [
            SystemMessage("Be short."),
            HumanMessage("Find x."),
            AIMessage("", tool_calls=[CALL]),
            ToolMessage("found", tool_call_id="call_1"),
            AIMessage("Here it is."),
        ]
    )
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert turns[2]["tool_calls"] == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "search", "arguments": {"query": "x"}},
        }
    ]
    assert turns[3] == {
        "role": "tool",
        "name": "search",
        "content": "found",
        "tool_call_id": "call_1",
    }


def test_neighbours_of_one_role_become_one_turn() -> None:
    """Templates want roles to alternate, so doubled messages are joined by a blank line."""
    turns = chat_messages(
        [
            SystemMessage("a"),
            SystemMessage("b"),
            HumanMessage("c"),
            HumanMessage(""),
            AIMessage("d"),
            AIMessage("e", tool_calls=[CALL]),
        ]
    )
    assert [turn["content"] for turn in turns] == ["a\n\nb", "c", "d\n\ne"]
    assert turns[-1]["tool_calls"]


def test_a_turn_with_calls_is_not_joined_with_the_next() -> None:
    """Text after a call would move in front of it, so the two stay apart."""
    turns = chat_messages([HumanMessage("a"), AIMessage("", tool_calls=[CALL]), AIMessage("b")])
    assert [turn["role"] for turn in turns] == ["user", "assistant", "assistant"]


def test_results_of_parallel_calls_stay_apart() -> None:
    """Each tool result is a turn of its own, with the name its call had."""
    other = {**CALL, "name": "get_time", "id": "call_2"}
    turns = chat_messages(
        [
            HumanMessage("a"),
            AIMessage("", tool_calls=[CALL, other]),
            ToolMessage("1", tool_call_id="call_2"),
            ToolMessage("2", tool_call_id="call_1"),
        ]
    )
    assert [turn["name"] for turn in turns[2:]] == ["get_time", "search"]


def test_text_blocks_are_text_and_thoughts_of_the_assistant_are_left_out() -> None:
    """Lists of blocks become text; an assistant's other blocks are told elsewhere or not at all."""
    turns = chat_messages(
        [
            HumanMessage(["one", {"type": "text", "text": "two"}]),
            AIMessage(
                [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "text", "text": "three"},
                    {"type": "tool_use", "id": "call_1", "name": "search", "input": {}},
                ],
                tool_calls=[CALL],
            ),
        ]
    )
    assert turns[0]["content"] == "one\ntwo"
    assert turns[1]["content"] == "three"


def test_invalid_calls_are_not_told_again() -> None:
    """A call that never ran is no part of what the model did."""
    bad = {"name": "search", "args": "{", "id": "call_1", "error": "broken"}
    (turn,) = chat_messages([AIMessage("Sorry.", invalid_tool_calls=[bad])])
    assert turn == {"role": "assistant", "content": "Sorry."}


def test_other_roles_go_through() -> None:
    """A template may know a role that LangChain has no class for."""
    assert chat_messages([ChatMessage("x", role="developer")]) == [
        {"role": "developer", "content": "x"}
    ]


@pytest.mark.parametrize(
    "message",
    [
        HumanMessage([{"type": "image_url", "image_url": {"url": "data:"}}]),
        ToolMessage([{"type": "image", "base64": "", "mime_type": "image/png"}], tool_call_id="1"),
        FunctionMessage("x", name="f"),
    ],
)
def test_what_a_text_model_cannot_be_given_is_a_config_error(message: object) -> None:
    """An image is refused by name instead of being dropped unnoticed."""
    with pytest.raises(ConfigError, match="message 0"):
        chat_messages([message])


NAMES = ("search", "get_time")


@pytest.mark.parametrize(
    ("choice", "offered", "must_call"),
    [
        (None, True, ()),
        (False, True, ()),
        ("auto", True, ()),
        ({"type": "auto"}, True, ()),
        ("none", False, ()),
        ({"type": "none"}, False, ()),
        ("any", True, NAMES),
        ("required", True, NAMES),
        (True, True, NAMES),
        ({"type": "any"}, True, NAMES),
        ("search", True, ("search",)),
        ({"type": "function", "function": {"name": "search"}}, True, ("search",)),
        ({"type": "function", "name": "search"}, True, ("search",)),
        ({"type": "tool", "name": "get_time"}, True, ("get_time",)),
    ],
)
def test_every_form_of_tool_choice(choice: object, offered: bool, must_call: object) -> None:
    """Words, booleans, names and the objects of other providers all say one of three things."""
    assert ToolChoice.of(choice, NAMES) == ToolChoice(offered=offered, must_call=must_call)


@pytest.mark.parametrize(
    "choice",
    ["serch", "Search", {"type": "tool", "name": "x"}, {"type": "function"}, {}, 3, ["search"]],
)
def test_a_choice_that_names_nothing_is_a_config_error(choice: object) -> None:
    """A name is compared exactly, and an unknown form is not guessed at."""
    with pytest.raises(ConfigError, match="tool_choice"):
        ToolChoice.of(choice, NAMES)


def test_without_tools_nothing_is_offered_and_nothing_can_be_forced() -> None:
    """A free choice among no tools is a turn of text; a forced one is an error."""
    assert ToolChoice.of(None, ()) == ToolChoice(offered=False)
    with pytest.raises(ConfigError, match="no tools"):
        ToolChoice.of("any", ())
    with pytest.raises(ConfigError, match="not among"):
        ToolChoice.of("search", ())


def test_a_tool_named_like_a_word_can_be_asked_for_by_object() -> None:
    """The word keeps its meaning; the object says that the tool is meant."""
    assert ToolChoice.of("none", ("none",)).offered is False
    chosen = ToolChoice.of({"type": "tool", "name": "none"}, ("none",))
    assert chosen.must_call == ("none",)
