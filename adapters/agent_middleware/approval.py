"""Asking a person about one call, in LangChain's per-call human-in-the-loop schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from langchain_core.messages import ToolMessage
from langgraph.types import interrupt
from pydantic import BaseModel, ConfigDict, Field, create_model

from toolguard.adapters.agent_middleware.blocked import ANSWERED, blocked_message, mark
from toolguard.guard.seal import Seal
from toolguard.guard.tool_gate import GateVerdict

Answer = Literal["approve", "edit", "reject", "respond"]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Approve(_Answer):
    """Run the call as it stands."""

    type: Literal["approve"]


class Reject(_Answer):
    """Do not run the call."""

    type: Literal["reject"]
    message: str = ""


class Respond(_Answer):
    """Do not run the call; the message is its result."""

    type: Literal["respond"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonsAnswer:
    """What a person said about one call.

    Args:
        type: `approve`, `edit`, `reject` or `respond`.
        arguments: what is to run; for `edit` the person's, else the call's own.
        message: for `reject` and `respond`.
    """

    type: Answer
    arguments: Mapping[str, Any]
    message: str = ""

    @property
    def runs(self) -> bool:
        """Whether the person wants the call to run."""
        return self.type in ("approve", "edit")


def ask_person(
    call_id: str, name: str, arguments: Mapping[str, Any], description: str
) -> PersonsAnswer:
    """Return a person's answer; the first time it pauses the agent instead, at its checkpoint.

    An edit keeps the tool: its name is part of the schema that the answer must fit.

    Raises:
        GraphInterrupt: to pause.
        ValidationError: on resuming with an answer that fits none of the four forms.
    """
    request = {
        "type": "tool_approval",
        "tool_call_id": call_id,
        "name": name,
        "args": dict(arguments),
        "description": description,
    }
    said = interrupt(request, response_schema=_answers_for(name)).model_dump()
    edited = said.get("edited_action")
    return PersonsAnswer(
        type=said["type"],
        arguments=dict(arguments) if edited is None else edited["args"],
        message=said.get("message", ""),
    )


def _answers_for(name: str) -> Any:
    """Return the type that an answer about a call of this tool must fit."""
    pinned: Any = Literal[name]
    action = _model("EditedAction", name=pinned, args=dict[str, Any])
    edit = _model("Edit", type=Literal["edit"], edited_action=action)
    return Annotated[Approve | edit | Reject | Respond, Field(discriminator="type")]


def _model(title: str, /, **types: Any) -> Any:
    fields: dict[str, Any] = {field: (kind, ...) for field, kind in types.items()}
    return create_model(title, __base__=_Answer, **fields)


def description_of(name: str, verdict: GateVerdict) -> str:
    """Return for the person why the call waits; the model never sees it."""
    record = verdict.record
    if verdict.reason == "rule_confirm" or record is None:
        return f"The policy wants a person to confirm every call of {name}."
    p_wrong, threshold = record.evidence.get("p_wrong"), record.evidence.get("threshold")
    doubt = f"{name}: {record.detail}."
    if p_wrong is not None:
        allowed = "none is allowed" if threshold is None else f"allowed {threshold:.3f}"
        doubt += f" P(wrong) {p_wrong:.3f}, {allowed}."
    return doubt


def answer_message(seal: Seal, call_id: str, name: str, answer: PersonsAnswer) -> ToolMessage:
    """Return what stands in the tool's place after `reject` or `respond`."""
    if answer.type == "respond":
        return ToolMessage(
            content=answer.message,
            name=name,
            tool_call_id=call_id,
            artifact=mark(seal, call_id, ANSWERED),
        )
    why = f": {answer.message}" if answer.message else ""
    text = f"A person refused {name}{why}. It was not run. Do not repeat the same call."
    return blocked_message(seal, call_id, name, text, "refused_by_person")
