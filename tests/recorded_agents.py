"""Agents of `create_agent` whose model writes a script, with decisions of a real guard.

Every call carries a signed record of what `Guard.check` said of it; tools, middleware, checkpoints
and audit store are the real ones. For tests of what comes after a decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.base import BaseCheckpointSaver

from toolguard.adapters.agent_middleware.middleware import ToolguardMiddleware
from toolguard.adapters.audit_store import AuditStore
from toolguard.guard.call_record import CallRecord
from toolguard.guard.guard import Evidence, Guard
from toolguard.guard.seal import Seal
from toolguard.guard.tools import Menu

ScriptedCall = tuple[str, Mapping[str, Any], float]
"""Tool, arguments, and how sure the model is: 1 for a clear choice, 0 for a toss-up."""


@tool
def get_weather(city: str) -> str:
    """Weather of a city now."""
    return f"sunny in {city}"


@tool
def get_time(city: str) -> str:
    """Local time of a city."""
    return f"noon in {city}"


@tool
def send_email(to: str, subject: str, body: str) -> str:
    """Send an email."""
    return f"sent to {to}"


@tool
def delete_account(account: str) -> str:
    """Delete an account and all its data."""
    return f"deleted {account}"


TOOLS: tuple[BaseTool, ...] = (get_weather, get_time, send_email, delete_account)


def menu_of(tools: Sequence[BaseTool] = TOOLS) -> Menu:
    """Return the menu of LangChain tools."""
    from toolguard.adapters.agent_middleware.handed import tool_of

    return Menu.of(tool_of(one) for one in tools)


class ScriptedModel(BaseChatModel):
    """Writes the calls that stand in its script for the user's words, then ends the turn."""

    guard: Any
    seal: Any
    menu: Any
    script: dict[str, list[ScriptedCall]]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **options: Any) -> ScriptedModel:
        return self

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        said = next(m for m in reversed(messages) if isinstance(m, HumanMessage))
        done = isinstance(messages[-1], ToolMessage)
        message = AIMessage("Done.") if done else self._calls(str(said.content))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _calls(self, words: str) -> AIMessage:
        calls, records = [], {}
        for number, (name, arguments, sureness) in enumerate(self.script[words]):
            call_id = f"{words}-{number}"
            calls.append({"name": name, "args": dict(arguments), "id": call_id})
            record = self._record(call_id, name, arguments, sureness)
            records[call_id] = record.to_dict()
        return AIMessage("", tool_calls=calls, response_metadata={"toolguard": records})

    def _record(
        self, call_id: str, name: str, arguments: Mapping[str, Any], sureness: float
    ) -> CallRecord:
        view = self.guard.profile.view(self.menu)
        decision = self.guard.check(evidence(self.guard, self.menu, name, sureness), view)
        return CallRecord.of(
            decision,
            call_id=call_id,
            arguments=arguments,
            policy=self.guard.policy,
            seal=self.seal,
        )


def evidence(guard: Guard, menu: Menu, name: str, sureness: float) -> Evidence:
    """Return evidence for a tool, between it and its neighbour on the menu by `sureness`."""
    profile = guard.profile
    at = menu.names.index(name)
    rival = (at + 1) % len(menu)
    rows = torch.nn.functional.normalize(profile.means - profile.centre, dim=1)
    share = 0.5 + sureness / 2
    logits = torch.full((len(menu),), -6.0)
    logits[at], logits[rival] = 3.0 * sureness, 0.0
    return Evidence(
        chosen=name,
        hidden=profile.centre + share * rows[at] + (1 - share) * rows[rival],
        logprob=logits.log_softmax(0),
    )


def guarded_agent(
    guard: Guard,
    seal: Seal,
    store: AuditStore,
    saver: BaseCheckpointSaver[Any],
    script: dict[str, list[ScriptedCall]],
    tools: Sequence[BaseTool] = TOOLS,
) -> Any:
    """Return a compiled agent that keeps account in `store` and waits in `saver`."""
    model = ScriptedModel(guard=guard, seal=seal, menu=menu_of(tools), script=script)
    middleware = ToolguardMiddleware(guard.policy, seal, audit=store)
    return create_agent(model, list(tools), middleware=[middleware], checkpointer=saver)


def say(agent: Any, words: str, thread: str) -> Any:
    """Return what the agent does with the user's words."""
    return agent.invoke(
        {"messages": [HumanMessage(words)]}, {"configurable": {"thread_id": thread}}
    )
