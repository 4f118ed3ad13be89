"""A program with a guarded agent on SQLite that kills itself at a given step, for crash tests.

Started as: waiting_agent.py FOLDER STEP HOW [ANSWER]. STEP is where the process dies: `approved`
(after the approval was written, before the start), `started` (before the tool), `running` (in it,
after its effect), `ended` (before the outcome is written), or `never`. Without ANSWER the agent is
asked to begin; with `go` it goes on from its checkpoint; otherwise ANSWER is a person's, as JSON.
What the tool does is a line in FOLDER/effects, and the last line of output is the state as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from agent_fakes import ASK, KEY, POLICY, SEAL, ScriptedModel, judged, turn
from langchain.agents import create_agent
from langchain_core.messages import ToolMessage
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command

from toolguard.adapters.agent_middleware.middleware import ToolguardMiddleware
from toolguard.adapters.audit_store import AuditStore

THREAD = {"configurable": {"thread_id": "thread-1"}}
CALLS = {
    "delete": judged("delete", {"text": "old"}, "confirm", call_id="call_delete"),
    "send": judged("send", {"text": "hello"}, call_id="call_send"),
}


def die() -> None:
    """End as a power cut would: no handler, no flush, no goodbye."""
    os.kill(os.getpid(), signal.SIGKILL)


class DyingStore:
    """An audit store in a process that dies around one of its writes."""

    def __init__(self, store: AuditStore, step: str) -> None:
        self.store, self.step = store, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def write(self, event: Any) -> bool:
        """Write the event, or die before the outcome or after the approval."""
        if event.kind == "outcome" and self.step == "ended":
            die()
        written = self.store.write(event)
        if event.kind == "approval" and self.step == "approved":
            die()
        return written

    def write_started(self, *args: Any) -> Any:
        """Write the start, and die after it."""
        outcome = self.store.write_started(*args)
        if self.step == "started":
            die()
        return outcome


def tools(folder: Path, step: str) -> list[StructuredTool]:
    """Return tools whose effect is a line in a file, on disk before they say so."""

    def make(name: str) -> StructuredTool:
        def run(text: str = "") -> str:
            with (folder / "effects").open("a") as file:
                file.write(f"{name} {text}\n")
                file.flush()
                os.fsync(file.fileno())
            if step == "running":
                die()
            return f"{name} ran"

        return StructuredTool.from_function(run, name=name, description=f"Does {name}.")

    return [make("delete"), make("send")]


async def main(folder: Path, step: str, how: str, tool: str, answer: str | None) -> None:
    """Run the agent one step further."""
    store = AuditStore.open(folder / "audit.db", key=KEY)
    guard = ToolguardMiddleware(POLICY, SEAL, audit=DyingStore(store, step))
    async with AsyncExitStack() as stack:
        path = str(folder / "checkpoints.db")
        if how == "async":
            saver: Any = await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(path))
        else:
            saver = stack.enter_context(SqliteSaver.from_conn_string(path))
        agent = create_agent(
            ScriptedModel(turns=(turn(CALLS[tool], id="turn-1"),)),
            tools=tools(folder, step),
            middleware=[guard],
            checkpointer=saver,
        )
        given: Any = ASK if answer is None else None
        if answer not in (None, "go"):
            given = Command(resume=json.loads(answer))
        if how == "async":
            state = await agent.ainvoke(given, THREAD, durability="sync")
        else:
            state = agent.invoke(given, THREAD, durability="sync")
    waits = [waiting.value["tool_call_id"] for waiting in state.get("__interrupt__", ())]
    said = [m.content for m in state["messages"] if isinstance(m, ToolMessage)]
    print(json.dumps({"waits": waits, "answers": said}))  # noqa: T201 - read by the test


if __name__ == "__main__":
    where, at, way, called, *rest = sys.argv[1:]
    asyncio.run(main(Path(where), at, way, called, rest[0] if rest else None))
