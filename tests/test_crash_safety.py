"""A process killed between approval and outcome: nothing is lost, and nothing runs twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import KEY

from toolguard.adapters.audit_store import AuditStore

PROGRAM = Path(__file__).with_name("waiting_agent.py")
APPROVE = json.dumps({"type": "approve"})
REJECT = json.dumps({"type": "reject"})


@dataclass(frozen=True)
class Agent:
    """The program's folder, and how its agent is run."""

    folder: Path
    how: str
    tool: str = "delete"

    def go(self, answer: str | None = None, *, dies: str = "never") -> dict[str, Any] | None:
        """Run the program; return the agent's state, or None if it died as it was told."""
        given = [] if answer is None else [answer]
        command = [sys.executable, PROGRAM, self.folder, dies, self.how, self.tool, *given]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parent)},
        )
        if dies != "never":
            assert done.returncode == -signal.SIGKILL, done.stderr
            return None
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    @property
    def effects(self) -> list[str]:
        """What the tools did to the world, over all processes."""
        path = self.folder / "effects"
        return path.read_text().splitlines() if path.exists() else []

    def kinds(self) -> list[str]:
        """The kinds of the events on record, from a chain that holds."""
        with AuditStore.open(self.folder / "audit.db", key=KEY) as store:
            assert store.verify().ok
            return [event.kind for event in store.events()]


@pytest.fixture(params=["sync", "async"])
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Agent:
    return Agent(tmp_path, request.param)


@pytest.mark.slow
def test_a_crash_between_approval_and_start_loses_nothing(agent: Agent) -> None:
    """The approval is on record and nothing has run; asked again, the call runs once."""
    assert agent.go() == {"waits": ["call_delete"], "answers": []}
    agent.go(APPROVE, dies="approved")
    assert agent.effects == []
    assert agent.kinds() == ["decision", "approval_request", "approval"]
    state = agent.go(APPROVE)
    assert state == {"waits": [], "answers": ["delete ran"]}
    assert agent.effects == ["delete old"]
    assert agent.kinds()[-2:] == ["started", "outcome"]
    assert agent.go("go") == state
    assert agent.effects == ["delete old"]


@pytest.mark.slow
def test_a_person_may_think_again_after_a_crash(agent: Agent) -> None:
    """A refusal after an approval that had no effect yet is a refusal."""
    agent.go()
    agent.go(APPROVE, dies="approved")
    state = agent.go(REJECT)
    assert "refused" in state["answers"][0]
    assert agent.effects == []


@pytest.mark.slow
def test_an_approval_after_a_crash_cannot_be_one_of_something_else(agent: Agent) -> None:
    """The first answer counts: other arguments need another call."""
    agent.go()
    agent.go(APPROVE, dies="approved")
    edit = {"type": "edit", "edited_action": {"name": "delete", "args": {"text": "all"}}}
    state = agent.go(json.dumps(edit))
    assert "another answer was given before" in state["answers"][0]
    assert agent.effects == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "step", "effects"),
    [
        ("delete", "started", 0),
        ("delete", "running", 1),
        ("delete", "ended", 1),
        ("send", "running", 1),
    ],
)
def test_a_crash_between_start_and_outcome_runs_nothing_twice(
    agent: Agent, tool: str, step: str, effects: int
) -> None:
    """Whether the tool had its effect nobody knows, so it does not run again, and that is said."""
    agent = Agent(agent.folder, agent.how, tool)
    if tool == "delete":
        agent.go()
        agent.go(APPROVE, dies=step)
    else:
        agent.go(dies=step)
    assert len(agent.effects) == effects
    assert agent.kinds()[-1] == "started"
    state = agent.go("go")
    if state["waits"]:  # the answer was lost with the process, so the person is asked again
        state = agent.go(APPROVE)
    assert state["waits"] == []
    assert "was not run again" in state["answers"][0]
    assert len(agent.effects) == effects
    assert agent.kinds()[-1] == "outcome"
