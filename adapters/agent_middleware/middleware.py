"""`ToolguardMiddleware`: no tool of an agent runs but through the guard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState, hook_config
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import AIMessage

from toolguard.adapters.agent_middleware.blocked import blocked_message
from toolguard.adapters.agent_middleware.boundary import Admitted, ToolBoundary
from toolguard.adapters.agent_middleware.ledger import AuditWriter, CallLedger
from toolguard.adapters.agent_middleware.run_history import begin_run, blocked_in_run, messages_of
from toolguard.guard.policy import Policy
from toolguard.guard.seal import Seal
from toolguard.guard.tool_gate import ToolGate

if TYPE_CHECKING:
    from langchain.agents.middleware.types import ModelRequest, ToolCallRequest

BOUNDARY = "toolguard_boundary"
"""Model setting that tells a `GuardedChatModel` that blocked calls are answered for here."""

GUARDED = "toolguard"
"""What a `GuardedChatModel` says it is; no other model knows the setting."""


class ToolguardState(AgentState[Any]):
    """An agent's state with the beginning of the current run."""

    toolguard_run: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]


def role_in_context(request: ToolCallRequest) -> str | None:
    """Return the run's `role`, from the agent's context; never from messages or arguments."""
    context: Any = request.runtime.context
    role = context.get("role") if isinstance(context, Mapping) else getattr(context, "role", None)
    return role if isinstance(role, str) else None


class ToolguardMiddleware(AgentMiddleware[ToolguardState, Any, Any]):
    """Enforces decisions where tools run, in `create_agent(middleware=[...])`.

    A call without an authentic record, or changed since it was judged, does not run. A call that
    wants a person pauses the agent, which needs a checkpointer.

    Args:
        policy: what may run; the one the model's guard has.
        seal: the one the model's records are signed with.
        audit: where decisions and outcomes are kept; in `enforce` a call that cannot be recorded
            does not run.
        role_of: who asks, from the request; by default `role` in the run's context.
    """

    state_schema = ToolguardState

    def __init__(
        self,
        policy: Policy,
        seal: Seal,
        *,
        audit: AuditWriter | None = None,
        role_of: Callable[[ToolCallRequest], str | None] = role_in_context,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.seal = seal
        gate = ToolGate(policy, seal, audit)
        self.boundary = ToolBoundary(gate, CallLedger(audit, policy, seal), role_of)

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]
    ) -> Any:
        """Return the tool's answer, or the guard's in its place."""
        entered = self.boundary.enter(request)
        if not isinstance(entered, Admitted):
            return entered
        try:
            result = handler(entered.request)
        except Exception as error:
            self.boundary.failed(entered, error)
            raise
        return self.boundary.ended(entered, result)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
    ) -> Any:
        """Return the tool's answer, or the guard's in its place; the event loop goes on."""
        entered = await asyncio.to_thread(self.boundary.enter, request)
        if not isinstance(entered, Admitted):
            return entered
        try:
            result = await handler(entered.request)
        except Exception as error:
            await asyncio.to_thread(self.boundary.failed, entered, error)
            raise
        return await asyncio.to_thread(self.boundary.ended, entered, result)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]
    ) -> Any:
        """Return the model's answer, with the calls that this middleware answers for."""
        return handler(_with_boundary(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        """Return the model's answer, with the calls that this middleware answers for."""
        return await handler(_with_boundary(request))

    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:  # noqa: ARG002
        """Return where this run begins."""
        return begin_run(state)

    async def abefore_agent(self, state: Any, runtime: Any) -> dict[str, Any]:  # noqa: ARG002
        """Return where this run begins."""
        return begin_run(state)

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:  # noqa: ARG002
        """Return the end of a run in which too many calls were blocked."""
        return self._ended(state)

    @hook_config(can_jump_to=["end"])
    async def abefore_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:  # noqa: ARG002
        """Return the end of a run in which too many calls were blocked."""
        return self._ended(state)

    @hook_config(can_jump_to=["model"])
    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Return the model's turn again if all it wrote was malformed calls."""
        return self._again(state, runtime)

    @hook_config(can_jump_to=["model"])
    async def aafter_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Return the model's turn again if all it wrote was malformed calls."""
        return await asyncio.to_thread(self._again, state, runtime)

    def _ended(self, state: Any) -> dict[str, Any] | None:
        blocked = blocked_in_run(state, self.seal)
        if self.policy.mode == "monitor" or blocked < self.policy.vetoed_retries:
            return None
        text = f"I stopped: {blocked} of my tool calls were blocked."
        return {"jump_to": "end", "messages": [AIMessage(content=text)]}

    def _again(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        messages = messages_of(state)
        last = messages[-1] if messages else None
        if not isinstance(last, AIMessage) or not last.invalid_tool_calls:
            return None
        self.boundary.never_handed(last, _thread_of(runtime))
        if last.tool_calls:
            return None  # LangChain tells the model of the others once these are answered
        # An agent whose model wrote malformed calls alone would end without a word.
        told = [self._malformed(call) for call in last.invalid_tool_calls]
        return {"jump_to": "model", "messages": told}

    def _malformed(self, call: Any) -> Any:
        text = f"The call was not run: {call['error'] or 'it is not well formed'}"
        return blocked_message(self.seal, call["id"] or "", call["name"] or "", text, "malformed")


def _thread_of(runtime: Any) -> str:
    info = getattr(runtime, "execution_info", None)
    return str(getattr(info, "thread_id", None) or "")


def _with_boundary(request: ModelRequest[Any]) -> ModelRequest[Any]:
    if getattr(request.model, "_llm_type", "") != GUARDED:
        return request
    return request.override(model_settings={**request.model_settings, BOUNDARY: True})
