"""Where waiting agents are looked at and answered.

What a person decides on is taken from the agent's own interrupt at its checkpoint: the store holds
digests alone, and what it says is no ground for running anything.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from toolguard.adapters.audit_store.event import StoredEvent
from toolguard.guard.errors import ToolguardError
from toolguard.guard.tools import canonical_json, sha256_text

_READ_SECONDS = 10  # for a checkpoint
_REQUEST = "tool_approval"  # type of our interrupts; see agent_middleware.approval

Refusal = Literal["", "no_agent", "gone", "busy", "changed"]
"""Why an answer was not passed on; empty if it was."""


class ResumableAgent(Protocol):
    """A compiled LangGraph agent with a checkpointer, or anything that passes these two on."""

    def get_state(self, config: Any, /) -> Any:
        """Return the thread's snapshot, whose `interrupts` are what it waits for."""

    def invoke(self, command: Any, config: Any, /) -> Any:
        """Run the thread on from its checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingCall:
    """A call that waits for a person, as its agent tells it.

    Args:
        request: the event that says a person was asked.
        interrupt_id: what the answer must name; empty if the call cannot be answered here.
        name: the tool's name.
        arguments: as they would run.
        description: why a person is asked.
        problem: why the call cannot be answered here; empty if it can.
        failure: how the agent ended on the answer before; empty if it did not.
    """

    request: StoredEvent
    interrupt_id: str = ""
    name: str = ""
    arguments: Any = None
    description: str = ""
    problem: str = ""
    failure: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of name and arguments; a form sends it back, so what was seen is what counts."""
        return sha256_text(canonical_json([self.interrupt_id, self.name, self.arguments]))


class ApprovalDesk:
    """Looks at waiting calls and passes answers on, one at a time to each thread of an agent.

    Args:
        agent: what waits; None if the dashboard has none.
        logger: is told how resumed agents end.
    """

    def __init__(self, agent: ResumableAgent | None, logger: Any) -> None:
        self.agent = agent
        self._logger = logger
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="toolguard-look")
        self._resumers = ThreadPoolExecutor(8, thread_name_prefix="toolguard-resume")
        self._runs: dict[str, tuple[str, Future[Any]]] = {}  # thread -> call answered last, its run

    def close(self) -> None:
        """Wait for the agents that were resumed here, and take no more."""
        self._resumers.shutdown()
        self._readers.shutdown()

    def look(self, request: StoredEvent) -> WaitingCall:
        """Return the waiting call behind a request, read from the agent's checkpoint."""
        if self.agent is None:
            return WaitingCall(request=request, problem="no_agent")
        if problem := self._run_problem(request):
            return WaitingCall(request=request, problem=problem)
        state = self._readers.submit(self.agent.get_state, _config(request.run_id))
        try:
            error = state.exception(_READ_SECONDS)
        except TimeoutError as late:
            error = late
        if error is not None:
            self._logger.error("dashboard_agent_unreadable", error=type(error).__name__)
            return WaitingCall(
                request=request, problem=f"its state cannot be read ({type(error).__name__})"
            )
        return _found(request, state.result(), self._failure(request))

    def answer(self, request: StoredEvent, digest: str, answer: Mapping[str, Any]) -> Refusal:
        """Resume the agent with a person's answer, in a thread of ours, and return at once.

        Args:
            request: that is answered.
            digest: of the call as the person saw it.
            answer: in the schema of the agent's interrupt.
        """
        agent = self.agent
        if agent is None:
            return "no_agent"
        with self._lock:
            if self._running(request.run_id):
                return "busy"
            call = self.look(request)
            if not call.interrupt_id:
                return "gone"
            if call.digest != digest:
                return "changed"
            from langgraph.types import Command

            command: Command[Any] = Command(resume={call.interrupt_id: dict(answer)})
            run = self._resumers.submit(agent.invoke, command, _config(request.run_id))
            self._runs[request.run_id] = (request.call_id, run)
        run.add_done_callback(partial(self._tell_end, request.call_id))
        return ""

    def _run_problem(self, request: StoredEvent) -> str:
        """Return what to say of a call whose agent is at work on an answer given here."""
        call_id, run = self._runs.get(request.run_id, ("", None))
        if run is None or run.done():
            return ""
        return "answered" if call_id == request.call_id else "busy"

    def _failure(self, request: StoredEvent) -> str:
        call_id, run = self._runs.get(request.run_id, ("", None))
        error = run.exception() if run and call_id == request.call_id and run.done() else None
        return type(error).__name__ if error else ""

    def _running(self, run_id: str) -> bool:
        _, run = self._runs.get(run_id, ("", None))
        return run is not None and not run.done()

    def _tell_end(self, call_id: str, run: Future[Any]) -> None:
        error = run.exception()
        if error is None:
            self._logger.info("dashboard_agent_resumed", call_id=call_id)
            return
        known = error.message if isinstance(error, ToolguardError) else ""
        self._logger.error(
            "dashboard_agent_failed", call_id=call_id, error=type(error).__name__, message=known
        )


def _config(run_id: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": run_id}}


def _found(request: StoredEvent, state: Any, failure: str) -> WaitingCall:
    for interrupt in state.interrupts:
        value = interrupt.value
        ours = isinstance(value, Mapping) and value.get("type") == _REQUEST
        if ours and value.get("tool_call_id") == request.call_id:
            return WaitingCall(
                request=request,
                interrupt_id=str(interrupt.id),
                name=str(value.get("name")),
                arguments=value.get("args"),
                description=str(value.get("description", "")),
                failure=failure,
            )
    return WaitingCall(request=request, problem="gone", failure=failure)
