"""The examples as users run them: on the bundled agent, under a profile made from its own data."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolguard.adapters.audit_store import AuditStore
from toolguard.calibration.cli import toolguard

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a profile of the bundled agent on the project's curated queries."""
    folder = tmp_path_factory.mktemp("examples")
    data, made = str(folder / "data"), str(folder / "profile")
    calibrate = ["calibrate", "--model", "reference", "--data", data, "--out", made]
    for command in (["data", "curated", "--out", data], calibrate):
        result = CliRunner().invoke(toolguard, command)
        assert result.exit_code == 0, result.output
    return folder / "profile"


def run(name: str, *options: str | Path) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]([str(option) for option in options])


def test_the_langchain_agent_asks_before_it_sends(
    profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every call is judged and recorded, and no mail is sent without a person's yes."""
    audit = tmp_path / "audit.db"
    run("langchain_agent", "--profile", profile, "--audit", audit)
    told = capsys.readouterr().out
    with AuditStore.open(audit, create=False) as store:
        assert store.verify().ok
        decided = list(store.events(kind="decision"))
        approved = {e.call_id for e in store.events(kind="approval", action="approve")}
        sent = {e.call_id for e in store.events(kind="started", tool="send_email")}
    assert decided
    assert sent <= approved
    assert ("tool       queued" in told) == bool(sent)


def test_staging_replays_what_enforcing_then_does(
    profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Watching runs what enforcing blocks; a tool that the policy denies never runs."""
    run("staging_block", "--profile", profile, "--out", tmp_path)
    watched, enforced = (
        line.partition("ran:")[2] for line in capsys.readouterr().out.splitlines() if "ran:" in line
    )
    assert watched != enforced
    assert "run_code" not in enforced
    with AuditStore.open(tmp_path / "enforce.db", create=False) as store:
        assert store.verify().ok
        assert any(event.action in ("veto", "clarify") for event in store.events(kind="decision"))


def test_a_model_of_ones_own_is_guarded(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that the caller loaded is judged like any other, with and without LangChain."""
    run("custom_model", "--profile", profile)
    told = capsys.readouterr().out
    assert "P(wrong)" in told
    assert "LangChain" in told
