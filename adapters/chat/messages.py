"""From LangChain messages to the HF chat format, which knows only text, calls and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from toolguard.guard.errors import ConfigError

ChatTurn = dict[str, Any]

_MERGED = ("system", "user", "assistant")
_TEXT_BLOCKS = ("text", "text-plain")


def chat_messages(messages: Sequence[BaseMessage]) -> list[ChatTurn]:
    """Return the conversation in the HF chat format.

    Neighbours of one role become one turn, as templates want roles to alternate. Calls of an
    assistant's turn that were not valid are left out: nothing came of them.

    Raises:
        ConfigError: names the message with a role or content that a text model cannot be given.
    """
    names: dict[str, str] = {}
    turns: list[ChatTurn] = []
    for index, message in enumerate(messages):
        if isinstance(message, AIMessage):
            names.update({str(call["id"]): call["name"] for call in message.tool_calls})
        turn = _turn(message, index, names)
        if turns and _may_merge(turns[-1], turn):
            both = (turns[-1]["content"], turn["content"])
            turn = {**turn, "content": "\n\n".join(filter(None, both))}
            turns.pop()
        turns.append(turn)
    return turns


def _may_merge(before: ChatTurn, turn: ChatTurn) -> bool:
    same = before["role"] == turn["role"] and turn["role"] in _MERGED
    return same and not before.get("tool_calls")


def _turn(message: BaseMessage, index: int, names: Mapping[str, str]) -> ChatTurn:
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": _text(message, index)}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": _text(message, index)}
    if isinstance(message, AIMessage):
        return _assistant(message, index)
    if isinstance(message, ToolMessage):
        named = {"name": name} if (name := message.name or names.get(message.tool_call_id)) else {}
        told = {"content": _text(message, index), "tool_call_id": message.tool_call_id}
        return {"role": "tool", **named, **told}
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": _text(message, index)}
    raise ConfigError(
        f"message {index} is a {type(message).__name__}, which no chat template knows",
        hint="use system, human, AI and tool messages",
    )


def _assistant(message: AIMessage, index: int) -> ChatTurn:
    turn: ChatTurn = {"role": "assistant", "content": _text(message, index, skip_others=True)}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": dict(call["args"])},
            }
            for call in message.tool_calls
        ]
    return turn


def _text(message: BaseMessage, index: int, *, skip_others: bool = False) -> str:
    """Return the message's text; blocks of calls and thoughts stand elsewhere, or are not told."""
    if isinstance(message.content, str):
        return message.content
    pieces: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            pieces.append(block)
        elif block.get("type") in _TEXT_BLOCKS and isinstance(block.get("text"), str):
            pieces.append(block["text"])
        elif not skip_others:
            raise ConfigError(
                f"message {index} holds a block of type {block.get('type')!r}, expected text",
                hint="this model reads text alone",
                index=index,
            )
    return "\n".join(pieces)
