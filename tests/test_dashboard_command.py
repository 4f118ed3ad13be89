"""`toolguard dashboard`: what it refuses before it listens, its token, and its agent."""

from __future__ import annotations

import json
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from toolguard.adapters.audit_store import AuditStore
from toolguard.adapters.dashboard import Access
from toolguard.adapters.dashboard.access import is_loopback, load_token
from toolguard.adapters.dashboard.agent_source import load_agent
from toolguard.calibration.cli import LazyGroup
from toolguard.calibration.commands.dashboard import _tell, command
from toolguard.guard.errors import ConfigError


@pytest.fixture
def store(tmp_path) -> None:
    """Make an empty audit store."""
    AuditStore.open(tmp_path / "audit.db").close()


def test_tokens_are_long_and_their_files_private(tmp_path):
    """A missing file is made for its owner alone and read again; others are refused."""
    path = tmp_path / "token"
    token = load_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_token(path) == token
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="other users"):
        load_token(path)
    with pytest.raises(ConfigError, match="cannot make"):
        load_token(tmp_path / "none" / "token")
    with pytest.raises(ConfigError, match="at least 22"):
        Access(token="short")
    assert "abcdefghij" not in repr(Access(token="abcdefghij" * 3))


def run(*args: str) -> Any:
    group = LazyGroup(name="toolguard", entries={})
    group.add_command(command, "dashboard")
    group.get_command = lambda _ctx, _name: command
    return CliRunner().invoke(group, ["dashboard", *args])


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("::", False),
        ("192.168.1.4", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_only_loopback_is_this_machine(host, alone):
    """Whatever is not surely loopback is reachable from elsewhere."""
    assert is_loopback(host) is alone


def test_an_address_that_others_reach_must_be_asked_for(store, tmp_path):
    """Listening beyond this machine needs --allow-remote."""
    found = run("--audit", str(tmp_path / "audit.db"), "--host", "0.0.0.0")  # noqa: S104 - refused
    assert found.exit_code == 2
    assert "--allow-remote" in found.stderr


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    """A mistyped path is told, and leaves no empty store behind."""
    found = run("--audit", str(tmp_path / "none.db"))
    assert found.exit_code == 2
    assert "no audit store" in found.stderr
    assert not (tmp_path / "none.db").exists()


def test_a_port_in_use_is_told(store, tmp_path):
    """The command says so and how to go on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        found = run("--audit", str(tmp_path / "audit.db"), "--port", port)
    assert found.exit_code == 2
    assert "cannot listen" in found.stderr


def test_a_token_in_a_file_is_not_printed(capsys, tmp_path):
    """The address is told with the token only if nothing else keeps it."""
    _tell("http://127.0.0.1:1", "secret-token", None)
    assert "http://127.0.0.1:1/login?token=secret-token\n" in capsys.readouterr().out
    _tell("http://127.0.0.1:1", None, str(tmp_path / "told.json"))
    assert "the token in the token file" in capsys.readouterr().out
    told = json.loads((tmp_path / "told.json").read_text())
    assert told == {"address": "http://127.0.0.1:1", "url": None}


def no_agent() -> object:
    """Return something that is no agent."""
    return object()


def forgetful() -> object:
    """Return an agent without a checkpointer."""
    return SimpleNamespace(get_state=print, invoke=print, checkpointer=None)


def fine() -> object:
    """Return something that does what an agent does."""
    return SimpleNamespace(get_state=print, invoke=print)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothing", "names no function"),
        ("json:", "names no function"),
        ("no_such_module_here:f", "no module"),
        ("json:nothing", "has no function"),
        ("json:__name__", "has no function"),
        ("json:JSONEncoder", "without get_state and invoke"),
        ("{here}:no_agent", "without get_state and invoke"),
        ("{here}:forgetful", "no checkpointer"),
    ],
)
def test_an_agent_that_cannot_be_used_is_told(monkeypatch, source, words):
    """The command names what is wrong with --agent before it listens."""
    monkeypatch.setitem(sys.modules, "agents_here", sys.modules[__name__])
    with pytest.raises(ConfigError, match=words):
        load_agent(source.format(here="agents_here"))


def test_an_agent_is_what_its_function_returns(monkeypatch):
    """Anything that can be read and resumed will do."""
    monkeypatch.setitem(sys.modules, "agents_here", sys.modules[__name__])
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_agent("agents_here:fine").invoke is print
