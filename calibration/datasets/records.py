"""Labelled records and menus as they stand in files: the project's input format, validated.

A record says which call is right in one situation. Its form in a file is one JSON object a line
(docs: "Dataset record"); `dataset` reads files, resolves menus and reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PrivateAttr,
    ValidationInfo,
    field_validator,
)

from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu, Tool, ToolCall

UNORDERED = "unordered_calls"
"""Tag of a record whose `calls` may be made in any order."""

NonEmpty = Annotated[str, Field(min_length=1)]
Role = Literal["system", "user", "assistant", "tool"]


class _Entry(BaseModel):
    """Base of everything read from a file: unknown keys refused, values frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Call(_Entry):
    """One call: the exact tool name and its arguments as a JSON object."""

    name: NonEmpty
    arguments: dict[str, Any] = {}

    def to_tool_call(self) -> ToolCall:
        """Return the same call as the runtime's value."""
        return ToolCall(name=self.name, arguments=self.arguments)


class MessageCall(_Entry):
    """One call inside an assistant message."""

    function: Call
    type: Literal["function"] = "function"
    id: str | None = None


class Message(_Entry):
    """One chat message; a tool result has role `tool` and the tool's name."""

    role: Role
    content: str | None = None
    name: str | None = None
    tool_calls: tuple[MessageCall, ...] = ()
    tool_call_id: str | None = None

    def to_chat(self) -> dict[str, Any]:
        """Return the plain dictionary that chat templates expect, without absent fields."""
        chat: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        named = {"name": self.name, "tool_call_id": self.tool_call_id}
        chat |= {key: value for key, value in named.items() if value is not None}
        if self.tool_calls:
            chat["tool_calls"] = [_call_to_chat(call) for call in self.tool_calls]
        return chat


def _call_to_chat(call: MessageCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": dict(call.function.arguments)}
    identity = {} if call.id is None else {"id": call.id}
    return {**identity, "type": call.type, "function": function}


class ToolEntry(_Entry):
    """One tool in a file."""

    name: NonEmpty
    description: str = ""
    parameters: dict[str, Any] = {}

    def to_tool(self) -> Tool:
        """Return the runtime's value; absent parameters become an empty object schema."""
        return Tool.from_schema(self.model_dump())


class MenuEntry(_Entry):
    """One menu of a `menus.json`; `system` is the policy text that goes with its tools."""

    tools: tuple[ToolEntry, ...]
    source: str = ""
    system: str | None = None
    note: str | None = None
    generated_descriptions: bool = False
    toolkit_description: str | None = None

    def to_menu(self) -> Menu:
        """Return the runtime's value.

        Raises:
            ConfigError: on an empty menu or a name that occurs twice.
        """
        return Menu(tuple(tool.to_tool() for tool in self.tools))


def _to_tool(value: object) -> object:
    """Turn a mapping into a Tool and leave anything else to the validation that follows."""
    return ToolEntry.model_validate(value).to_tool() if isinstance(value, Mapping) else value


class Record(_Entry):
    """One labelled situation: what was said, which tools were offered, which call is right.

    Args:
        id: unique over a dataset.
        source: name of the data set it comes from.
        split: upstream file or split; not the split that calibration makes.
        query: the user text that decides the call.
        messages: the whole context up to the decision; None means one user message, the query.
        tools: the tools offered, in prompt order; may be empty only if there is no call.
        menu_id: id of the menu in `menus.json`; None if the tools stood in the record.
        system: the menu's system text; empty if it has none.
        call: the right next call; None if no tool should be called now.
        calls: every right call where there are several; the first one is `call`.
        accept: accepted values, one `{tool: {argument: [value, ...]}}` a call.
    """

    id: NonEmpty
    source: str
    split: str
    query: str
    messages: tuple[Message, ...] | None = None
    tools: tuple[Annotated[InstanceOf[Tool], BeforeValidator(_to_tool)], ...]
    menu_id: str | None = None
    system: str = ""
    call: Call | None
    calls: tuple[Call, ...] = ()
    accept: tuple[dict[str, dict[str, Any]], ...] = ()
    tags: tuple[str, ...] = ()
    meta: dict[str, Any] = {}
    _menu: Menu | None = PrivateAttr(default=None)

    @field_validator("messages")
    @classmethod
    def _not_empty(cls, messages: tuple[Message, ...] | None) -> tuple[Message, ...] | None:
        if messages == ():
            raise ValueError("must not be empty; leave it out if the query is all there is")
        return messages

    @field_validator("tools")
    @classmethod
    def _unique_names(cls, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
        names = [tool.name for tool in tools]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"tool names must be unique, found twice: {', '.join(twice)}")
        return tools

    @field_validator("call")
    @classmethod
    def _call_is_offered(cls, call: Call | None, info: ValidationInfo) -> Call | None:
        if call is not None:
            _require_offered([call.name], info)
        return call

    @field_validator("calls")
    @classmethod
    def _calls_begin_with_call(
        cls, calls: tuple[Call, ...], info: ValidationInfo
    ) -> tuple[Call, ...]:
        _require_offered([call.name for call in calls], info)
        if calls and "call" in info.data and calls[0] != info.data["call"]:
            raise ValueError("the first of `calls` must be `call`")
        return calls

    @field_validator("accept")
    @classmethod
    def _accepted_are_offered(
        cls, accept: tuple[dict[str, Any], ...], info: ValidationInfo
    ) -> tuple[dict[str, Any], ...]:
        _require_offered([name for entry in accept for name in entry], info)
        return accept

    @property
    def menu(self) -> Menu:
        """The tools as a Menu; records read from one menu of a file share one object.

        Raises:
            ConfigError: if no tool is offered (`tools` is empty).
        """
        if self._menu is None:
            if not self.tools:
                raise ConfigError(
                    f"record {self.id!r} offers no tools, so it has no menu",
                    hint="leave out records whose `tools` is empty",
                )
            self._menu = Menu(self.tools)
        return self._menu

    def with_menu(self, menu: Menu) -> Self:
        """Attach the Menu object that the record's tools came from; returns the record itself.

        Raises:
            ConfigError: if the menu's tools are not the record's.
        """
        if menu.tools is not self.tools and menu.tools != self.tools:
            raise ConfigError(f"record {self.id!r}: its tools are not those of the menu given")
        self._menu = menu
        return self

    @property
    def is_call(self) -> bool:
        """Whether a tool should be called now."""
        return self.call is not None

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """Chat messages up to the decision, without the menu's system text."""
        if self.messages is None:
            return [{"role": "user", "content": self.query}]
        return [message.to_chat() for message in self.messages]

    def conversation_with_system(self) -> list[dict[str, Any]]:
        """Return the chat messages with the menu's system text first, where it has one.

        A system message that the record already begins with is kept behind that text, in one
        message: most chat templates take only one.
        """
        chat = self.conversation
        if not self.system:
            return chat
        text = self.system
        if chat[0]["role"] == "system":
            text = f"{text}\n\n{chat.pop(0)['content']}"
        return [{"role": "system", "content": text}, *chat]

    @property
    def right_names(self) -> frozenset[str]:
        """Names of the tools that count as right next; empty if no tool should be called.

        The call's own name; every name in `accept`, whose calls have no order upstream; and every
        name in `calls` if they are tagged `unordered_calls`.
        """
        if self.call is None:
            return frozenset()
        names = {self.call.name, *(name for entry in self.accept for name in entry)}
        if UNORDERED in self.tags:
            names.update(call.name for call in self.calls)
        return frozenset(names)


def _require_offered(names: list[str], info: ValidationInfo) -> None:
    """Refuse names that are not among the tools; silent if the tools themselves were refused."""
    if "tools" not in info.data:
        return
    offered = {tool.name for tool in info.data["tools"]}
    missing = sorted({name for name in names if name not in offered})
    if missing:
        raise ValueError(f"{', '.join(missing)} not among the {len(offered)} tools offered")
