"""The standard suites of langchain-tests, over the real chat model with scripted tokens.

The model has random weights and its tokens are scripted, because the bundled agent, which calls
tools of a few domains, is too small to answer what the suites ask. What passes here is the
interface; what the guard decides is tested elsewhere.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import tiny_models
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from scripted_chat import ScriptedAnswers, guard_of, helpful

from toolguard.adapters.chat.chat_model import GuardedChatModel
from toolguard.adapters.guarded_agent import GuardedAgent
from toolguard.adapters.loading import wrap_model
from toolguard.guard.tools import Menu


@cache
def agent() -> GuardedAgent:
    """Return one agent for all tests; its profile knows none of the suites' tools."""
    tokenizer = tiny_models.tiny_tokenizer()
    model = tiny_models.tiny_model("qwen3", vocab_size=len(tokenizer))
    loaded = wrap_model(model, tokenizer, name="tiny-qwen3")
    menu = Menu.of([{"name": "known"}, {"name": "also_known"}])
    return GuardedAgent.of(loaded, guard_of(loaded, menu, uncalibrated="allow"))


class TestUnitSuite(ChatModelUnitTests):
    """Skipped by the suite: environment variables and serialisation, of which there are none."""

    @property
    def chat_model_class(self) -> type[GuardedChatModel]:
        return GuardedChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"agent": agent()}


class TestIntegrationSuite(ChatModelIntegrationTests):
    """Skipped by the suite: images, audio, PDF and JSON mode, of which a text model has none."""

    @property
    def chat_model_class(self) -> type[GuardedChatModel]:
        return GuardedChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        script = ScriptedAnswers(agent().loaded.tokenizer, helpful)
        return {"agent": agent(), "generate_kwargs": {"logits_processor": [script]}}

    @property
    def supports_model_override(self) -> bool:
        """Nothing to override: a chat model holds the weights of one model."""
        return False

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True
