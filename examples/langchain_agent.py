"""A LangChain agent with six tools, one of them irreversible, behind the guard.

Every tool call is judged while the model writes it and again where the tool runs; sending mail
waits for a person. Run `make demo` first: it makes the profile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from toolguard.adapters.agent_middleware import ToolguardMiddleware
from toolguard.adapters.audit_store import AuditStore
from toolguard.adapters.chat.chat_model import GuardedChatModel
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile
from toolguard.guard.seal import Seal, load_key

PROFILE = Path("out/demo/profile")
POLICY = Policy.load(
    {
        "preset": "staging",
        "risk_target": 0.1,
        "tools": {
            "get_weather": {"tier": "read"},
            "get_calendar": {"tier": "read"},
            "search_web": {"tier": "read"},
            "read_file": {"tier": "read"},
            "create_reminder": {"tier": "write"},
            "send_email": {"tier": "irreversible", "rule": "confirm", "budget": {"per_run": 1}},
        },
    }
)
"""`staging` denies tools that are not listed and asks a person about doubtful writes."""

REQUESTS = (
    "What is the weather in Oslo right now?",
    "What do I have on the calendar on Friday?",
    "Send an email to dana@example.com saying I will be ten minutes late",
    "Run the script cleanup.py",
)


def answers() -> Mapping[str, Callable[..., str]]:
    """Return what stands behind each tool: short results, which the bundled agent knows."""
    return {
        "get_weather": lambda **_: "sunny, 21 degrees",
        "get_calendar": lambda **_: "no entries found",
        "search_web": lambda **_: "3 results",
        "read_file": lambda **_: "12 lines",
        "create_reminder": lambda **_: "saved",
        "send_email": lambda **_: "queued",
    }


def tools_of(profile: Profile) -> list[BaseTool]:
    """Return the tools with the definitions that the profile was calibrated with."""
    return [
        StructuredTool.from_function(
            answers()[schema["function"]["name"]],
            name=schema["function"]["name"],
            description=schema["function"]["description"],
            args_schema=schema["function"]["parameters"],
        )
        for schema in profile.meta.menu
        if schema["function"]["name"] in POLICY.tools
    ]


@contextmanager
def guarded_agent(profile: Path, audit: Path, model: str = "reference") -> Iterator[Any]:
    """Give an agent whose every call is judged, recorded and, where it must be, asked about."""
    chat = GuardedChatModel.load(
        model, profile, POLICY, seal=Seal(load_key(audit.with_suffix(".key"))), temperature=0
    )
    with AuditStore.open(audit, key=chat.seal.key) as store:
        yield create_agent(
            chat,
            tools_of(Profile.load(profile)),
            middleware=[ToolguardMiddleware(POLICY, chat.seal, audit=store)],
            checkpointer=InMemorySaver(),
        )


def ask(agent: Any, request: str, thread: str, answer: str) -> list[str]:
    """Return what happened on one request, line by line; a person's answer is given if asked."""
    config = {"configurable": {"thread_id": thread}}
    state = agent.invoke({"messages": [{"role": "user", "content": request}]}, config)
    lines = [f"user       {request}"]
    for waiting in state.get("__interrupt__", ()):
        lines.append(f"asked      {waiting.value['name']} {waiting.value['args']} -> {answer}")
        state = agent.invoke(Command(resume={waiting.id: {"type": answer}}), config)
    return lines + list(_told(state["messages"][1:]))


def _told(messages: Sequence[Any]) -> Iterator[str]:
    for message in messages:
        for call in getattr(message, "tool_calls", ()):
            record = message.response_metadata["toolguard"][call["id"]]
            p_wrong = record["evidence"]["p_wrong"]
            doubt = "" if p_wrong is None else f", P(wrong) {p_wrong:.3f}"
            yield f"call       {call['name']} {call['args']}: {record['action']}{doubt}"
        if message.type == "tool":
            yield f"tool       {message.content}"
        elif message.content:
            yield f"agent      {message.content}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the agent on a few requests and print what the guard did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", type=Path, default=PROFILE)
    parser.add_argument("--audit", type=Path, default=Path("out/langchain_agent.db"))
    options = parser.parse_args(arguments)
    options.audit.parent.mkdir(parents=True, exist_ok=True)
    with guarded_agent(options.profile, options.audit) as agent:
        for number, request in enumerate(REQUESTS):
            for answer in ("approve", "reject") if "email" in request else ("approve",):
                print("\n".join(ask(agent, request, f"{number}-{answer}", answer)), end="\n\n")
    print(f"recorded in {options.audit}; see: toolguard audit list --audit {options.audit}")


if __name__ == "__main__":
    main()
