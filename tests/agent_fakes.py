"""A LangChain agent with a scripted model whose calls carry signed records, like a guarded one's.

Everything but the model is the real thing: `create_agent`, the middleware, checkpoints, the audit
store.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from toolguard.adapters.agent_middleware.middleware import ToolguardMiddleware, role_in_context
from toolguard.adapters.audit_store import AuditStore, StoredEvent
from toolguard.guard.call_record import CallRecord
from toolguard.guard.decision import Action, Decision, Reading, Reason
from toolguard.guard.errors import AuditError
from toolguard.guard.policy import Policy
from toolguard.guard.seal import Seal

KEY = bytes(range(32))
SEAL = Seal(KEY)
ASK = {"messages": [("user", "Please do it.")]}

POLICY = Policy.load(
    {
        "mode": "enforce",
        "unlisted": "judge",
        "vetoed_retries": 3,
        "tools": {
            "send": {"tier": "write"},
            "note": {"tier": "read"},
            "delete": {
                "tier": "irreversible",
                "rule": "confirm",
                "arguments": {"properties": {"text": {"maxLength": 20}}},
            },
            "drop": {"rule": "deny"},
            "pay": {"tier": "write", "budget": {"per_run": 1}},
            "ping": {"tier": "read", "budget": {"per_minute": 2}},
            "admin": {"roles": ["operator"]},
        },
    }
)
MONITOR = POLICY.model_copy(update={"mode": "monitor"})


def decision(
    tool: str,
    action: Action = "allow",
    *,
    reason: Reason = "confident",
    proposed: Action | None = None,
    target: str | None = None,
    menu: Sequence[str] | None = None,
    fields: Sequence[str] = (),
) -> Decision:
    """Return a decision with evidence of the usual kind."""
    names = tuple(menu or (tool, "other"))
    reading = Reading(
        menu=names,
        chosen=tool,
        scores={"logprob": tuple(-0.1 - i for i in range(len(names)))},
        margins={"logprob": 1.0},
        gaps={"logprob": 1.0},
        status="calibrated",
        p_wrong=0.0314159,
    )
    return Decision(
        action=action,
        proposed=proposed or action,
        tool=tool,
        reason=reason,
        detail="P(wrong) is within the threshold",
        reading=reading,
        threshold=0.0271828,
        target=target,
        fields=tuple(fields),
        latency_us=12.5,
    )


@dataclass(frozen=True, kw_only=True)
class Call:
    """A tool call and what the message says was decided about it; None if it says nothing."""

    call: dict[str, Any]
    record: Any

    @property
    def id(self) -> str:
        """The call's id."""
        return self.call["id"]

    def changed(self, **changes: Any) -> Call:
        """Return the call with parts replaced, under the same record."""
        return Call(call={**self.call, **changes}, record=self.record)


def judged(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    action: Action = "allow",
    *,
    call_id: str | None = None,
    seal: Seal = SEAL,
    policy: Policy = POLICY,
    **facts: Any,
) -> Call:
    """Return a call with its signed record."""
    arguments = dict(arguments or {})
    call_id = f"call_{uuid.uuid4().hex}" if call_id is None else call_id
    record = CallRecord.of(
        decision(name, action, **facts),
        call_id=call_id,
        arguments=arguments,
        policy=policy,
        seal=seal,
    )
    call = {"name": name, "args": arguments, "id": call_id, "type": "tool_call"}
    return Call(call=call, record=record.to_dict())


def forged(name: str, arguments: Mapping[str, Any] | None = None, call_id: str = "forged") -> Call:
    """Return a call that nobody judged."""
    call = {"name": name, "args": dict(arguments or {}), "id": call_id, "type": "tool_call"}
    return Call(call=call, record=None)


def turn(*calls: Call, **fields: Any) -> AIMessage:
    """Return the model's message with these calls and their records."""
    records = {call.id: call.record for call in calls if call.record is not None}
    return AIMessage(
        content="",
        tool_calls=[call.call for call in calls],
        response_metadata={"model_name": "scripted", "toolguard": records},
        **fields,
    )


class ScriptedModel(BaseChatModel):
    """Answers with its n-th message where the conversation has n of its messages; then with words.

    It keeps no place of its own, so a conversation can go on in another process.
    """

    turns: tuple[AIMessage, ...] = ()
    settings: list[dict[str, Any]] = []  # noqa: RUF012 - pydantic copies it

    @property
    def _llm_type(self) -> str:
        return "toolguard"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Return this model with the options of a guarded one."""
        return self.bind(tools=list(tools), **kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.settings.append(kwargs)
        at = sum(isinstance(message, AIMessage) for message in messages)
        said = self.turns[at] if at < len(self.turns) else AIMessage(content="It is done.")
        return ChatResult(generations=[ChatGeneration(message=said)])


@dataclass
class ToolLog:
    """Tools that write down what they were run with."""

    runs: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def tool(self, name: str) -> StructuredTool:
        """Return a tool of one text that says it ran."""

        def run(text: str = "") -> str:
            self.runs.append((name, {"text": text}))
            return f"{name} ran"

        return StructuredTool.from_function(run, name=name, description=f"Does {name}.")

    def tools(self, *names: str) -> list[StructuredTool]:
        """Return one tool a name."""
        return [self.tool(name) for name in names]

    @property
    def names(self) -> list[str]:
        """The names of the tools that ran, in order."""
        return [name for name, _ in self.runs]


TOOLS = ("send", "note", "delete", "drop", "pay", "ping", "admin", "other")


class World:
    """An agent behind the guard, with an audit store, run in a sync or an async way."""

    def __init__(self, folder: Path, *, how: str = "sync") -> None:
        self.how = how
        self.log = ToolLog()
        self.saver: Any = InMemorySaver()
        self.store: Any = AuditStore.open(folder / "audit.db", key=KEY)
        self.model: ScriptedModel | None = None
        self.thread = {"configurable": {"thread_id": "thread-1"}}

    def agent(
        self,
        *turns: AIMessage,
        policy: Policy = POLICY,
        seal: Seal = SEAL,
        before: Iterable[Any] = (),
        behind: Iterable[Any] = (),
        tools: Sequence[BaseTool | Callable[..., Any]] | None = None,
        role_of: Any = role_in_context,
        **options: Any,
    ) -> Any:
        """Return the agent; `before` and `behind` are other middleware around the guard's."""
        self.model = ScriptedModel(turns=turns)
        guard = ToolguardMiddleware(policy, seal, audit=self.store, role_of=role_of)
        return create_agent(
            self.model,
            tools=self.log.tools(*TOOLS) if tools is None else tools,
            middleware=[*before, guard, *behind],
            checkpointer=self.saver,
            **options,
        )

    async def run(self, agent: Any, given: Any = ASK, **options: Any) -> dict[str, Any]:
        """Return the state after a run."""
        if self.how == "async":
            return await agent.ainvoke(given, self.thread, **options)
        return agent.invoke(given, self.thread, **options)

    async def answer(self, agent: Any, answer: Mapping[str, Any] | None, state: Any) -> Any:
        """Return the state after a person gave the same answer to all that waits."""
        resume = {waiting.id: answer for waiting in state["__interrupt__"]}
        return await self.run(agent, Command(resume=resume))

    def events(self, **filters: Any) -> list[StoredEvent]:
        """Return what the audit store holds."""
        return list(self.store.events(**filters))

    def outcome(self, call: Call | str) -> Mapping[str, Any] | None:
        """Return the payload of a call's outcome; None if there is none."""
        event = self.store.get(call if isinstance(call, str) else call.id, "outcome")
        return None if event is None else event.payload


def answers(state: Mapping[str, Any]) -> list[ToolMessage]:
    """Return what stands in the state as the tools' answers."""
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


def policy(**tools: Any) -> Policy:
    """Return an enforcing policy with these tools, which judges tools it does not list."""
    return Policy.load({"mode": "enforce", "unlisted": "judge", "tools": tools})


def kinds(world: World, call: Call) -> list[str]:
    """Return the kinds of the events that the call left in the audit store."""
    return [event.kind for event in world.events(call_id=call.id)]


class FailingStore:
    """A store that fails at some of its methods."""

    def __init__(self, store: Any, *methods: str, kind: str = "") -> None:
        self.store, self.methods, self.kind = store, methods, kind

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            kind = getattr(args[0], "kind", "") if args else ""
            if name in self.methods and self.kind in ("", kind):
                raise AuditError("the disk is full")
            return method(*args, **kwargs)

        return call
