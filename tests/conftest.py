"""Fixtures that several test files use. Session-wide ones are shared: read them, never change them.

A test that changes a model or a tokenizer makes its own with `tiny_models`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agent_fakes import World
from fakes import script_for
from postgres import NoServerError, Server, running_server
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerFast

from toolguard.adapters.blocks import ModelView, resolve_blocks
from toolguard.adapters.loading import LoadedModel, wrap_model
from toolguard.guard.tools import Menu


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Tiny models run faster on one thread, and no result depends on the machine's cores.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Give a byte-level BPE tokenizer with a Hermes-style template."""
    return tiny_models.tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_qwen3(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Give a 3-block Qwen3 of width 32 with the tiny tokenizer's vocabulary."""
    return tiny_models.tiny_model("qwen3", vocab_size=len(tiny_tokenizer))


@pytest.fixture(scope="session")
def tiny_view(tiny_qwen3: PreTrainedModel) -> ModelView:
    """Give the view of tiny_qwen3."""
    return resolve_blocks(tiny_qwen3)


@pytest.fixture(scope="session")
def tiny_loaded(
    tiny_qwen3: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> LoadedModel:
    """Give tiny_qwen3 and tiny_tokenizer as `load_model` would."""
    return wrap_model(tiny_qwen3, tiny_tokenizer, name="tiny-qwen3")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a tiny Qwen3 checkpoint and its tokenizer."""
    return tiny_models.save_tiny(tmp_path_factory.mktemp("tiny-qwen3"))


@pytest.fixture(scope="session")
def tiny_menu() -> Menu:
    """Give five tools: two names begin alike, one is a prefix of another."""
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    query = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
    return Menu.of(
        [
            {"name": "get_weather", "description": "Weather of a city now.", "parameters": city},
            {"name": "get_time", "description": "Local time of a city.", "parameters": city},
            {"name": "search", "description": "Search the notes.", "parameters": query},
            {"name": "searchWeb", "description": "Search the web.", "parameters": query},
            {"name": "send_email", "description": "Send an email."},
        ]
    )


@pytest.fixture(scope="session")
def scripted() -> Callable[[LoadedModel, str], dict[str, Any]]:
    """Give a function from a model and a text to options that make `generate` write the text."""

    def options(loaded: LoadedModel, text: str) -> dict[str, Any]:
        return {"logits_processor": LogitsProcessorList([script_for(loaded.tokenizer, text)])}

    return options


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """Give a PostgreSQL server of our own; skip, saying why, where none can start."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(running_server())
        except NoServerError as error:
            pytest.skip(f"no PostgreSQL server: {error}")
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def audit_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of an audit store that is not there yet, on each kind of database in turn."""
    if request.param == "sqlite":
        return str(tmp_path / "audit.db")
    server: Server = request.getfixturevalue("postgres_server")
    return server.new_database()


@pytest.fixture(params=["sync", "async"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """Give a guarded agent's world, run by `invoke` and by `ainvoke` in turn."""
    return World(tmp_path, how=request.param)
