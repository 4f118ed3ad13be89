"""LangChain's chat model over a local model whose tool calls are judged while it writes them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from toolguard.adapters.chat.chat_turn import ChatTurn
from toolguard.adapters.chat.reply import Reply
from toolguard.adapters.chat.tool_choice import ToolChoice
from toolguard.adapters.chat.turn_threads import astream_turn, run_turn, stream_turn
from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import load_model
from toolguard.guard.guard import Guard
from toolguard.guard.policy import Policy
from toolguard.guard.seal import Seal

_OPTIONS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")


class GuardedChatModel(BaseChatModel):
    """A chat model that hands on only tool calls which the guard lets run.

    The decision of each call stands, signed, in `response_metadata["toolguard"][tool_call_id]`. A
    call that was blocked, wants a person, or is not well formed stands in `invalid_tool_calls` with
    the reason. To have tools of an agent enforced where they run, use `ToolguardMiddleware` too.

    Async methods run in worker threads; any number of threads and tasks may share one model.

    Attributes:
        agent: writes and judges.
        seal: signs records; the middleware needs the same one. By default a random key.
        max_tokens: most tokens of a turn; by default 512.
        temperature: 0 takes the likeliest token; by default as the model's own settings say.
        top_p: share of the probability that tokens are drawn from.
        top_k: likeliest tokens that are drawn from.
        seed: makes drawing repeatable, whatever other threads do.
        stop: plain text ends before any of these.
        streaming: whether `invoke` writes in chunks too, for callbacks.
        generate_kwargs: more keyword arguments for HF `generate`.
    """

    agent: GuardedAgent = Field(exclude=True, repr=False)
    seal: Seal = Field(default_factory=Seal, exclude=True, repr=False)
    max_tokens: int | None = Field(default=None, gt=0)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, gt=0)
    seed: int | None = None
    stop: list[str] | None = None
    streaming: bool | None = None
    generate_kwargs: Mapping[str, Any] = Field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        model: str,
        profile: Path | str | None,
        policy: Policy | Path | str | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        **fields: Any,
    ) -> Self:
        """Return the chat model over a checkpoint, its profile and a policy.

        Args:
            model: as for `load_model`: a folder, a hub id, or "reference".
            profile: folder that `toolguard calibrate` wrote; None judges by static rules alone.
            policy: a value, a YAML file, or None to watch only.
            device: as for `load_model`.
            dtype: as for `load_model`.
            fields: of the class.

        Raises:
            ConfigError: if one of them cannot be read.
            ArtifactMismatch: if the profile belongs to another model.
            UnsupportedModel: if the guard cannot read this model.
        """
        if profile is None:
            told = policy if isinstance(policy, Policy) else Policy.load(policy or {})
            guard = Guard(None, told)
        else:
            guard = Guard.load(profile, policy)
        return cls(
            agent=GuardedAgent.of(load_model(model, device=device, dtype=dtype), guard), **fields
        )

    @property
    def _llm_type(self) -> str:
        return "toolguard"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """What an answer depends on: a cache must not carry a decision over to another guard."""
        guard = self.agent.guard
        profile = guard.profile.meta.dataset_hash if guard.profile else None
        return {
            "model": self.agent.loaded.name,
            "fingerprint": self.agent.loaded.fingerprint,
            "policy": guard.policy.content_hash,
            "profile": profile,
            "generate_kwargs": repr(sorted(self.generate_kwargs.items())),
            **{name: getattr(self, name) for name in _OPTIONS},
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        told = {"model": self.agent.loaded.name, **kwargs}
        params = super()._get_ls_params(stop=stop or self.stop, **told)
        return LangSmithParams(**{**params, "ls_provider": "toolguard"})

    def bind_tools(
        self,
        tools: Sequence[Mapping[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | Mapping[str, Any] | bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with tools to offer in each turn.

        Args:
            tools: tools, functions, pydantic classes or schemas.
            tool_choice: None or "auto" leaves it to the model; "any" or "required" makes it call
                one, a name or an object that names one makes it call that, "none" offers none. A
                forced call is judged like any other.
            strict: written into the schemas, nothing else.
            kwargs: more to bind.

        Raises:
            ConfigError: if the choice names no tool of these.
        """
        schemas = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        ToolChoice.of(tool_choice, [schema["function"]["name"] for schema in schemas])
        return self.bind(tools=schemas, tool_choice=tool_choice, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        return _result(self._turn(messages, stop, kwargs).run(None, threading.Event()))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        return _result(await run_turn(self._turn(messages, stop, kwargs).run))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with closing(stream_turn(self._turn(messages, stop, kwargs).run)) as parts:
            for part in parts:
                yield from _chunks(part)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(astream_turn(self._turn(messages, stop, kwargs).run)) as parts:
            async for part in parts:
                for chunk in _chunks(part):
                    yield chunk

    def _turn(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> ChatTurn:
        """Return the turn: options of this call win over those of the model."""
        own = {name: getattr(self, name) for name in _OPTIONS}
        given = {name: value for name, value in kwargs.items() if value is not None}
        wanted = {**self.generate_kwargs, **own, **given}
        if stop is not None:
            wanted["stop"] = stop
        return ChatTurn.of(self.agent, self.seal, messages, wanted)


def _result(reply: Reply) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=reply.message())])


def _chunks(part: str | Reply) -> Iterator[ChatGenerationChunk]:
    if isinstance(part, str):
        yield ChatGenerationChunk(message=AIMessageChunk(content=part))
    else:
        yield from (ChatGenerationChunk(message=chunk) for chunk in part.chunks())
