"""The agent that a dashboard in another process resumes, made anew from what lies in a folder."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import tiny_models
from fakes import fake_profile, quiet_guard
from langgraph.checkpoint.sqlite import SqliteSaver
from recorded_agents import ScriptedCall, guarded_agent, menu_of

from toolguard.adapters.audit_store import AuditStore
from toolguard.adapters.loading import wrap_model
from toolguard.guard.profile import Profile
from toolguard.guard.seal import Seal, load_key

FOLDER = "TOOLGUARD_TEST_FOLDER"
MARKUP = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">"
MAIL = {"to": "ann@example.org", "subject": "Rent", "body": MARKUP}
SCRIPT: dict[str, list[ScriptedCall]] = {
    "mail": [("send_email", MAIL, 0.1)],
    "delete": [("delete_account", {"account": "a-17"}, 1.0)],
    "refuse": [("delete_account", {"account": "a-18"}, 1.0)],
    **{f"weather{n}": [("get_weather", {"city": "Rome"}, n / 20)] for n in range(20)},
    **{f"time{n}": [("get_time", {"city": "Rome"}, n / 20)] for n in range(20)},
}
POLICY = {
    "mode": "enforce",
    "tools": {
        "get_weather": {"tier": "read"},
        "get_time": {"tier": "write", "doubtful": "veto"},
        "send_email": {"tier": "write", "doubtful": "confirm"},
        "delete_account": {"tier": "irreversible", "rule": "confirm"},
    },
}


def profile() -> Profile:
    """Return the profile that the agent's guard has."""
    tokenizer = tiny_models.tiny_tokenizer()
    model = tiny_models.tiny_model("qwen3", vocab_size=len(tokenizer))
    loaded = wrap_model(model, tokenizer, name="tiny-qwen3")
    return fake_profile(loaded, menu_of(), threshold=0.3)


def waiting_agent() -> Any:
    """Return the agent whose store and checkpoints lie in the folder of the environment."""
    folder = Path(os.environ[FOLDER])
    connection = sqlite3.connect(folder / "checkpoints.db", check_same_thread=False)
    return guarded_agent(
        quiet_guard(profile(), **POLICY),
        Seal(load_key(folder / "key")),
        AuditStore.open(folder / "audit.db"),
        SqliteSaver(connection),
        SCRIPT,
    )
