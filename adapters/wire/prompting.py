"""From a conversation and a menu to prompt text, through the tokenizer's own chat template.

Two ways: the template is given the tools, where it can carry them; else the tools and the way to
call them are told in words of our own, and earlier calls and results become plain turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from toolguard.adapters.wire.json_scan import decode_object
from toolguard.guard.errors import ConfigError, ParseError, UnsupportedModel
from toolguard.guard.tools import Menu, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
WriteCalls = Callable[[Sequence[ToolCall]], str]

_MENTIONS_TOOLS = re.compile(r"\btools\b")


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the text of the tokenizer's chat template, of the one for tools if it has several."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("tool_use") or template.get("default")
    return template if isinstance(template, str) and template else None


def apply_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: list[dict[Any, Any] | Callable[..., Any]] | None = None,
    generation_prompt: bool = True,
) -> str:
    """Return the conversation as the tokenizer's chat template writes it.

    Raises:
        ConfigError: if the template refuses the conversation.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=generation_prompt
        )
    except (TemplateError, TypeError) as error:
        raise ConfigError(
            f"the tokenizer's chat template refuses this conversation: {error}",
            hint="check the order of the roles, and whether the template takes tool turns",
        ) from None
    return str(text)


def render_with_tools(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], menu: Menu
) -> str | None:
    """Return the prompt with `menu` told by the template itself; None if the template cannot.

    Raises:
        ConfigError: if the template refuses the conversation.
        UnsupportedModel: if there is no chat template.
    """
    if not _carries_tools(tokenizer):
        return None
    text = apply_template(tokenizer, messages, tools=list(menu.schemas()))
    # A template may know the word and still not print the tools.
    return text if all(_shows(text, name) for name in menu.names) else None


def render_without_tools(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    write_calls: WriteCalls,
    system_role: bool,
) -> str:
    """Return the prompt of a turn that is offered no tools; earlier calls and results stay in it.

    Args:
        tokenizer: has a chat template.
        messages: as from `normal_messages`.
        write_calls: as in `render_with_words`.
        system_role: as in `render_with_words`.

    Raises:
        ConfigError: if the template refuses the conversation.
        UnsupportedModel: if there is no chat template.
    """
    if _carries_tools(tokenizer):
        return apply_template(tokenizer, messages)
    return render_with_words(
        tokenizer, messages, "", write_calls=write_calls, system_role=system_role
    )


def _carries_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template speaks of tools.

    Raises:
        UnsupportedModel: if there is no chat template.
    """
    template = chat_template(tokenizer)
    if template is None:
        raise no_template()
    return _MENTIONS_TOOLS.search(template) is not None


def _shows(text: str, name: str) -> bool:
    return name in text or json.dumps(name, ensure_ascii=False) in text or json.dumps(name) in text


def no_template() -> UnsupportedModel:
    """Return the error for a tokenizer without a chat template."""
    return UnsupportedModel(
        "the tokenizer has no chat template, so a conversation cannot be put to this model",
        hint="use the instruction-tuned model's tokenizer, or --format name_only for plain text",
    )


def render_with_words(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    instructions: str,
    *,
    write_calls: WriteCalls,
    system_role: bool,
) -> str:
    """Return the prompt with `instructions` in front, for a template that cannot carry tools.

    Args:
        tokenizer: has a chat template.
        messages: as from `normal_messages`.
        instructions: the tools and how to call them; may be empty.
        write_calls: spells the assistant's earlier calls as the model would have written them.
        system_role: False folds system text into the first user turn. True tries a system turn
            first and folds only if the template refuses it.

    Raises:
        ConfigError: if the template refuses the conversation in both ways.
    """
    if chat_template(tokenizer) is None:
        raise no_template()
    plain = plain_turns(messages, write_calls)
    if system_role:
        try:
            return apply_template(tokenizer, _with_system(plain, instructions))
        except ConfigError:
            pass
    return apply_template(tokenizer, _folded(plain, instructions))


def _with_system(turns: Sequence[Message], instructions: str) -> list[Message]:
    said, rest = _split_system(turns)
    return [*_head("system", [*said, instructions]), *rest]


def _folded(turns: Sequence[Message], instructions: str) -> list[Message]:
    said, rest = _split_system(turns)
    return _merge([*_head("user", [*said, instructions]), *rest])


def _head(role: str, pieces: Sequence[str]) -> list[Message]:
    """Return the turn that comes first, or none if there is nothing to say in it."""
    content = "\n\n".join(filter(None, pieces))
    return [{"role": role, "content": content}] if content else []


def _split_system(turns: Sequence[Message]) -> tuple[list[str], list[Message]]:
    said = [turn["content"] for turn in turns if turn["role"] == "system" and turn["content"]]
    return said, [turn for turn in turns if turn["role"] != "system"]


def plain_turns(messages: Sequence[Message], write_calls: WriteCalls) -> list[Message]:
    """Return the conversation as system, user and assistant turns of plain text, roles alternating.

    Calls become what the model would have written; tool results become user turns that say so.
    """
    return _merge([_plain_turn(message, write_calls) for message in messages])


def _plain_turn(message: Message, write_calls: WriteCalls) -> Message:
    content = _as_text(message["content"])
    if message["role"] == "tool":
        name = message.get("name")
        of = f" of {name}" if name else ""
        return {"role": "user", "content": f"Result{of}:\n{content}"}
    if calls := calls_of(message):
        content = "\n".join(piece for piece in (content, write_calls(calls)) if piece)
    return {"role": message["role"], "content": content}


def _merge(turns: Sequence[Message]) -> list[Message]:
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            both = (merged[-1]["content"], turn["content"])
            merged[-1] = {"role": turn["role"], "content": "\n\n".join(filter(None, both))}
        else:
            merged.append(turn)
    return merged


def _as_text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part["text"]) for part in parts if "text" in part)


def calls_of(message: Mapping[str, Any]) -> list[ToolCall]:
    """Return the calls of one message of `normal_messages`."""
    functions = (call["function"] for call in message.get("tool_calls", ()))
    return [ToolCall(name=fn["name"], arguments=fn["arguments"]) for fn in functions]


def normal_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return a copy in which content is text or a list of parts and call arguments are objects.

    Raises:
        ConfigError: names the message that is not in the chat format.
    """
    if not messages:
        raise ConfigError("the conversation is empty", hint="give at least one user message")
    return [_normal_message(message, index) for index, message in enumerate(messages)]


def _normal_message(message: object, index: int) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ConfigError(
            f"message {index} has no role", hint='write {"role": ..., "content": ...}'
        )
    normal = {key: value for key, value in message.items() if key != "tool_calls"}
    normal["content"] = _normal_content(message.get("content"), index)
    if message.get("tool_calls"):
        normal["tool_calls"] = [_normal_call(call, index) for call in message["tool_calls"]]
    return normal


def _normal_content(content: object, index: int) -> str | list[Any]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return content
    raise ConfigError(f"message {index}: content must be text or a list of parts")


def _normal_call(call: object, index: int) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ConfigError(
            f"message {index}: a tool call has no name",
            hint='write {"type": "function", "function": {"name": ..., "arguments": {...}}}',
        )
    arguments = _normal_arguments(function.get("arguments"), index)
    normal = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    given = call.get("id") if isinstance(call, Mapping) else None
    return {"id": given, **normal} if given else normal


def _normal_arguments(arguments: object, index: int) -> dict[str, Any]:
    if arguments is None:
        return {}
    if isinstance(arguments, Mapping):
        return dict(arguments)
    if isinstance(arguments, str):
        try:
            value, end = decode_object(arguments.strip(), 0)
        except ParseError as error:
            raise ConfigError(
                f"message {index}: the arguments of a tool call are not a JSON object",
                offset=error.fields["offset"],
            ) from None
        if end == len(arguments.strip()):
            return value
    raise ConfigError(f"message {index}: the arguments of a tool call are not a JSON object")


def tool_lines(menu: Menu) -> str:
    """Return the tools of `menu`, one JSON description a line."""
    return "\n".join(
        json.dumps(schema["function"], ensure_ascii=False) for schema in menu.schemas()
    )
