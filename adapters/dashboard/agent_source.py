"""The agent that the user names as MODULE:FUNCTION."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from toolguard.adapters.dashboard.approval_desk import ResumableAgent
from toolguard.guard.errors import ConfigError

_HINT = "give MODULE:FUNCTION; the function takes nothing and returns a compiled LangGraph agent"


def load_agent(source: str) -> ResumableAgent:
    """Return what the function named by `source` gives; modules of the current folder are found.

    Raises:
        ConfigError: if there is no such function, or it returns no agent with a checkpointer.
    """
    module, _, name = source.partition(":")
    if not module or not name.isidentifier():
        raise ConfigError(f"{source!r} names no function", hint=_HINT)
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot import {module!r}: there is no module {error.name!r}", hint=_HINT
        ) from error
    if not callable(found):
        raise ConfigError(f"{module!r} has no function {name!r}", hint=_HINT)
    return _checked(found(), source)


def _checked(agent: Any, source: str) -> ResumableAgent:
    missing = [name for name in ("get_state", "invoke") if not callable(getattr(agent, name, None))]
    if missing:
        raise ConfigError(
            f"{source} returned a {type(agent).__name__} without {' and '.join(missing)}",
            hint=_HINT,
        )
    if getattr(agent, "checkpointer", True) in (None, False):
        raise ConfigError(
            f"the agent of {source} has no checkpointer, so none of its calls can wait",
            hint="compile it with the checkpointer that the waiting agents use",
        )
    agent_found: ResumableAgent = agent
    return agent_found
