"""From LangChain's request for a tool run to the call that the gate judges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.messages import AIMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from toolguard.adapters.agent_middleware.run_history import (
    let_in_before,
    messages_of,
    stored_record,
    used_before,
)
from toolguard.guard.call_record import CallRecord
from toolguard.guard.seal import Seal
from toolguard.guard.tool_gate import HandedCall
from toolguard.guard.tools import Tool

if TYPE_CHECKING:
    from langchain.agents.middleware.types import ToolCallRequest
    from langchain_core.tools import BaseTool


def follow_redirect(request: ToolCallRequest, seal: Seal) -> ToolCallRequest:
    """Return the request with the name and the tool that an authentic redirect asks for."""
    call = request.tool_call
    record = CallRecord.opened(record_of(request), seal)
    if record is None or record.action != "redirect" or call["name"] != record.tool:
        return request
    target = next((tool for tool in request.runtime.tools if tool.name == record.target), None)
    if target is None:
        return request
    return request.override(tool_call={**call, "name": target.name}, tool=target)


def handed_call(request: ToolCallRequest, role: str | None, seal: Seal) -> HandedCall:
    """Return the call as the gate takes it.

    Raises:
        ConfigError: if the tool has no name or no schema that can be used.
    """
    call = request.tool_call
    call_id = call["id"] or ""
    return HandedCall(
        call_id=call_id,
        name=call["name"],
        arguments=call["args"],
        tool=None if request.tool is None else tool_of(request.tool),
        record=record_of(request),
        role=role,
        used_before=used_before(request.state, call_id),
        started_in_run=let_in_before(request.state, call_id, call["name"], seal),
    )


def tool_of(tool: BaseTool) -> Tool:
    """Return our value for a LangChain tool, with the schema that a model sees."""
    return Tool.from_schema(convert_to_openai_tool(tool))


def record_of(request: ToolCallRequest) -> object:
    """Return what the newest message with this call says was decided about it, unchecked."""
    call_id = request.tool_call["id"]
    for message in reversed(messages_of(request.state)):
        if isinstance(message, AIMessage) and any(c["id"] == call_id for c in message.tool_calls):
            return stored_record(message, call_id)
    return None


def thread_of(request: ToolCallRequest) -> str:
    """Return the id of the agent's thread; empty if it has none."""
    configurable = request.runtime.config.get("configurable") or {}
    return str(configurable.get("thread_id") or "")
