"""One turn of the chat model: from LangChain's arguments to the agent, and back to a reply."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from langchain_core.messages import BaseMessage

from toolguard.adapters.chat.messages import chat_messages
from toolguard.adapters.chat.reply import Reply, written_calls
from toolguard.adapters.chat.sampling import Sampling
from toolguard.adapters.chat.stop_text import EarlyEnd, StopText
from toolguard.adapters.chat.tool_choice import ToolChoice
from toolguard.adapters.chat.turn_threads import OnText
from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.turn_result import GuardedResult
from toolguard.guard.errors import ConfigError
from toolguard.guard.seal import Seal
from toolguard.guard.tools import Tool

BOUNDARY = "toolguard_boundary"
"""Option by which the middleware asks for blocked and waiting calls: it answers them itself."""

_SAMPLING = ("temperature", "top_p", "top_k", "seed")
_LANGCHAINS = ("stream", "strict")  # options that ask nothing of the turn itself


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurn:
    """What a caller wants of one turn.

    Args:
        agent: writes and judges.
        seal: signs the records.
        conversation: HF chat format.
        tools: on offer.
        choice: whether one must be called.
        boundary: see `written_calls`.
        stop: stop sequences, of plain text.
        options: of HF `generate`.
    """

    agent: GuardedAgent
    seal: Seal
    conversation: Sequence[Mapping[str, Any]]
    tools: tuple[Tool, ...]
    choice: ToolChoice
    boundary: bool
    stop: tuple[str, ...]
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        agent: GuardedAgent,
        seal: Seal,
        messages: Sequence[BaseMessage],
        wanted: Mapping[str, Any],
    ) -> Self:
        """Return the turn that LangChain's keyword arguments ask for.

        Args:
            agent: writes and judges.
            seal: signs the records.
            messages: the conversation.
            wanted: `tools`, `tool_choice`, `stop`, `max_tokens`, `temperature`, `top_p`, `top_k`,
                `seed` and `toolguard_boundary`; everything else goes to HF `generate`.

        Raises:
            ConfigError: if a message, a tool, the choice or an option cannot be used.
        """
        rest = {key: value for key, value in wanted.items() if key not in _LANGCHAINS}
        tools = tuple(Tool.from_schema(schema) for schema in rest.pop("tools", None) or ())
        choice = ToolChoice.of(rest.pop("tool_choice", None), [tool.name for tool in tools])
        _check_promises(agent, rest.pop("model", None), rest.pop("parallel_tool_calls", None))
        sampling = Sampling(**{name: rest.pop(name, None) for name in _SAMPLING})
        return cls(
            agent=agent,
            seal=seal,
            conversation=chat_messages(messages),
            tools=tools if choice.offered else (),
            choice=choice,
            boundary=bool(rest.pop(BOUNDARY, False)),
            stop=tuple(rest.pop("stop", None) or ()),
            options=_generate_options(agent, sampling, rest),
        )

    def run(self, on_text: OnText | None, left: threading.Event) -> Reply:
        """Return the turn, written and judged.

        Args:
            on_text: gets plain text as it is written, or None.
            left: ends the turn at its next token once it is set.

        Raises:
            ConfigError: as `GuardedAgent.generate`.
        """
        text = StopText(self.stop, on_text)
        options = dict(self.options)
        early = EarlyEnd(lambda: text.found or left.is_set())
        options["stopping_criteria"] = [*(options.get("stopping_criteria") or ()), early]
        result = self.agent.generate(
            self.conversation,
            self.tools,
            must_call=self.choice.must_call,
            hold=self.boundary,
            on_text=text.push if self.stop or on_text else None,
            **options,
        )
        text.finish()
        return self._reply(result, text)

    def _reply(self, result: GuardedResult, text: StopText) -> Reply:
        written = str(result.message["content"])
        content = text.cut(written)
        stopped = len(content) < len(written)
        return Reply(
            content=content,
            calls=written_calls(result, self.agent.guard, self.seal, boundary=self.boundary),
            prompt_tokens=result.prompt_tokens,
            turn_tokens=len(result.tokens),
            facts={
                "model_name": self.agent.loaded.name,
                "model_provider": "toolguard",
                "finish_reason": "stop" if stopped else result.finish_reason,
            },
        )


def _check_promises(agent: GuardedAgent, model: object, parallel: object) -> None:
    """Refuse what other chat models can be asked for and this one cannot keep."""
    if model not in (None, agent.loaded.name):
        raise ConfigError(
            f"this chat model holds {agent.loaded.name!r} and cannot be {model!r} for one call",
            hint="make a GuardedChatModel for each model",
        )
    if parallel is False:
        raise ConfigError(
            "parallel_tool_calls=False cannot be promised: the model writes what it writes",
            hint="say so in the system prompt, or set a budget in the policy",
        )


def _generate_options(
    agent: GuardedAgent, sampling: Sampling, rest: Mapping[str, Any]
) -> dict[str, Any]:
    options = dict(rest)
    most = options.pop("max_tokens", None)
    if most is not None:
        if most < 1:
            raise ConfigError(f"max_tokens={most} leaves no room for an answer")
        options["max_new_tokens"] = most
    config = options.get("generation_config") or agent.loaded.model.generation_config
    drawn = sampling.options(config)
    # A seeded draw comes last: what the caller's processors do changes the distribution.
    processors = [*(options.get("logits_processor") or ()), *drawn.pop("logits_processor", ())]
    if processors:
        options["logits_processor"] = processors
    return {**options, **drawn}
