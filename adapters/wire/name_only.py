"""The published setting: the model answers with the name of a tool and nothing else.

The menu lists names only, unless descriptions are asked for. The decision is at the prompt's end.
A turn is one name a line, after any thought; arguments do not exist. Prose is not told from names:
an answer in words parses as a call whose name is on no menu, which a guard refuses. A tokenizer
without a chat template gets plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.json_scan import is_encodable
from toolguard.adapters.wire.prompting import (
    Message,
    chat_template,
    normal_messages,
    plain_turns,
)
from toolguard.adapters.wire.turn import (
    THOUGHT_OPENS,
    TURN_END,
    CallSpan,
    NameSpan,
    parse_error,
    skip_space,
    start_of_answer,
)
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LINE_END = re.compile(rf"\n|{TURN_END.pattern}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class NameOnly(WireFormat):
    """A bare name.

    Args:
        descriptions: tell each tool's description after its name.
    """

    name: ClassVar[str] = "name_only"
    trigger: ClassVar[str] = ""
    writes_arguments: ClassVar[bool] = False
    how_to_call: ClassVar[str] = (
        "Which tool serves the request best? Answer with its name alone, spelled as in the list."
    )

    def __init__(self, *, descriptions: bool = False) -> None:
        self._descriptions = descriptions

    def render(
        self,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Mapping[str, Any]],
        menu: Menu,
    ) -> str:
        """Return the prompt with our question; the template is never given the tools."""
        ready = normal_messages(messages)
        if chat_template(tokenizer) is None:
            return self._plain_text(ready, menu)
        return self._render_words(tokenizer, ready, menu)

    def _prepare(self, messages: list[Message]) -> list[Message]:
        return _without_arguments(messages)

    def _render_words(
        self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], menu: Menu
    ) -> str:
        return super()._render_words(tokenizer, _without_arguments(messages), menu)

    def _plain_text(self, messages: Sequence[Message], menu: Menu) -> str:
        turns = plain_turns(_without_arguments(messages), self.render_calls)
        told = "\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)
        # The newline keeps the name's first token free of the space that prose would fuse with it.
        return f"{self.instructions(menu)}\n\n{told}\nTool:\n"

    def instructions(self, menu: Menu) -> str:
        """Return the names, with their descriptions if so configured, and our question."""
        lines = "\n".join(f"- {self._told(tool.name, tool.description)}" for tool in menu)
        return f"Tools:\n{lines}\n\n{self.how_to_call}"

    def _told(self, name: str, description: str) -> str:
        return f"{name}: {description}" if self._descriptions and description else name

    def prefix(self) -> str:
        """Return the empty text: the name comes first."""
        return ""

    def spell(self, name: str) -> str:
        """Return `name` as it is, if it can be a line of its own."""
        marks = THOUGHT_OPENS.search(name) or TURN_END.search(name) or _CONTROL.search(name)
        if not name or marks or name.strip() != name or not is_encodable(name):
            raise ConfigError(
                f"the name_only format cannot carry the tool name {name!r}",
                hint="use a name without control characters, outer spaces and special marks",
                name=name,
            )
        return name

    def call_end(self) -> str:
        """Return the empty text: the end of the turn ends the name."""
        return ""

    def call_text(self, call: ToolCall, *, menu: Menu | None = None) -> str:  # noqa: ARG002
        """Return the name.

        Raises:
            ConfigError: if the call has arguments, which would be lost.
        """
        if call.arguments:
            raise ConfigError("the name_only format cannot carry arguments", name=call.name)
        return self.spell(call.name)

    def _events(self, text: str, menu: Menu | None) -> Iterator[NameSpan | CallSpan]:  # noqa: ARG002
        at = start_of_answer(text)
        if at == len(text):
            yield NameSpan(start=at)
        while at is not None and at < len(text):
            line_end = _LINE_END.search(text, at)
            end = line_end.start() if line_end else len(text)
            name = text[at:end].rstrip()
            yield (
                NameSpan(start=at, end=at + len(name), name=name)
                if line_end
                else NameSpan(start=at)
            )
            if not name or THOUGHT_OPENS.search(name):
                raise parse_error("bad_name", at, "expected a name on a line of its own")
            call = ToolCall(name=name, start=at)
            yield CallSpan(start=at, end=end, call=call)
            at = skip_space(text, end)
            if line_end and line_end.group() != "\n" and at < len(text):
                raise parse_error("trailing_text", at, "text after the end of the turn")


def _without_arguments(messages: Sequence[Message]) -> list[Message]:
    """Earlier calls in the form the model itself would have written them: names."""
    return [_bare(message) if message.get("tool_calls") else message for message in messages]


def _bare(message: Message) -> Message:
    names = [call["function"]["name"] for call in message["tool_calls"]]
    bare = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in names]
    return {**message, "tool_calls": bare}
