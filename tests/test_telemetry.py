"""What is told of an event: conventional names, digests, no values; never at the event's cost."""

from __future__ import annotations

import json
import sys

import pytest
import structlog
from audit_events import KEY, decision, started
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from toolguard.adapters.audit_store import AuditEvent, AuditStore, Telemetry
from toolguard.adapters.audit_store.telemetry import LOG_EVENT, default_tracer, event_record
from toolguard.guard.decision import Action
from toolguard.guard.guardrail_names import ATTRIBUTES, CONSTANTS, guardrail_attributes

DIGEST = "hmac-sha256:" + "0" * 64


def collecting(records):
    def keep(_logger, _method, event):
        records.append(dict(event))
        raise structlog.DropEvent

    return structlog.wrap_logger(None, processors=[keep])


@pytest.mark.parametrize(
    ("action", "verdict", "done"),
    [
        ("allow", "allow", "allow"),
        ("steer", "modify", "modify"),
        ("redirect", "modify", "modify"),
        ("veto", "deny", "block"),
        ("confirm", "escalate", "escalate"),
        ("clarify", "escalate", "escalate"),
    ],
)
def test_each_action_has_a_conventional_word(action, verdict, done):
    """What enforce would do is the verdict, what was done is the action."""
    told = guardrail_attributes({"action": action, "proposed": action})
    assert told["gen_ai.guardrail.verdict.type"] == verdict
    assert told["gen_ai.guardrail.action.type"] == done
    assert told["gen_ai.guardrail.security.content.modified"] == (verdict == "modify")


def test_no_action_is_without_a_word():
    """Whatever action is added needs a place in the table."""
    for attribute in ATTRIBUTES:
        if attribute.values is not None:
            assert set(attribute.values) == set(Action.__args__)


def test_names_are_those_of_the_proposal():
    """All names are conventional, and none stands twice."""
    names = [attribute.name for attribute in ATTRIBUTES] + list(CONSTANTS)
    assert len(set(names)) == len(names)
    assert all(name.startswith("gen_ai.") for name in names)


def test_monitor_mode_shows_what_would_have_happened():
    """In monitor mode verdict and action differ."""
    told = guardrail_attributes({"action": "allow", "proposed": "veto", "p_wrong": None})
    assert told["gen_ai.guardrail.verdict.type"] == "deny"
    assert told["gen_ai.guardrail.action.type"] == "allow"
    assert "gen_ai.guardrail.security.risk.score" not in told


def test_a_decision_is_told_with_its_evidence():
    """Reason, P(wrong), digest and ids stand under our names and theirs, as JSON."""
    record = event_record(decision("c1"))
    assert json.loads(json.dumps(record)) == record
    assert record["p_wrong"] == record["gen_ai.guardrail.security.risk.score"] == 0.125
    assert record["gen_ai.guardrail.verdict.code"] == "confident"
    assert record["gen_ai.guardrail.target.id"] == "c1"
    assert record["gen_ai.guardrail.target.subtype"] == "tool_call"
    assert record["gen_ai.conversation.id"] == "run-1"
    assert record["gen_ai.guardrail.security.content.input.hash"] == DIGEST


@pytest.mark.parametrize("kind", ["decision", "approval", "outcome"])
def test_values_in_the_store_are_not_told(kind):
    """Arguments, prompts and results that a policy lets into the database stay there."""
    payload = {"arguments": {"pin": "hunter2"}, "prompt": "hunter2", "result": "hunter2"}
    record = event_record(AuditEvent(kind=kind, call_id="c1", payload=payload))
    assert "hunter2" not in json.dumps(record)
    assert "arguments" not in record


def test_the_store_tells_of_what_it_wrote(tmp_path):
    """One line an event, after it was written; a repeated one and a refused start are not told."""
    records = []
    telemetry = Telemetry(logger=collecting(records))
    with AuditStore.open(tmp_path / "a.db", key=KEY, telemetry=telemetry) as store:
        store.write(decision("c1"))
        store.write(decision("c1"))
        store.write_started(started("c1"))
        store.write_started(started("c1"))
    assert [(record["event"], record["kind"]) for record in records] == [
        (LOG_EVENT, "decision"),
        (LOG_EVENT, "started"),
    ]


def test_the_default_line_is_json_on_stderr(capsys):
    """Standard output belongs to the program."""
    Telemetry().emit(decision("c1"))
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["gen_ai.operation.name"] == "run_guardrail"


def test_a_broken_log_does_not_undo_an_event(tmp_path):
    """The event is in the database; the failure is counted."""

    def fail(*_):
        raise OSError(28, "no space left")

    telemetry = Telemetry(logger=structlog.wrap_logger(None, processors=[fail]))
    with AuditStore.open(tmp_path / "a.db", telemetry=telemetry) as store:
        assert store.write(decision("c1"))
        assert store.get("c1", "decision")
    assert telemetry.failures == 1


@pytest.fixture
def spans():
    """Give a tracer and the spans it has ended."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("test"), exporter
    provider.shutdown()


def test_a_decision_is_a_span(spans):
    """Its length is the time the decision took, and its attributes are those of the line."""
    tracer, exporter = spans
    payload = {"reason": "doubtful", "evidence": {"latency_us": 250.0, "margins": {"logprob": 1.0}}}
    Telemetry(logger=collecting([]), tracer=tracer).emit(decision("c1", payload=payload))
    (span,) = exporter.get_finished_spans()
    assert span.name == "run_guardrail toolguard"
    assert span.end_time - span.start_time == 250_000
    assert span.attributes["gen_ai.guardrail.verdict.code"] == "doubtful"
    assert span.attributes["toolguard.kind"] == "decision"
    assert all(name.startswith(("gen_ai.", "toolguard.")) for name in span.attributes)


def test_other_events_stand_on_the_current_span(spans):
    """A start within the agent's own span is an event of that span."""
    tracer, exporter = spans
    telemetry = Telemetry(logger=collecting([]), tracer=tracer)
    with tracer.start_as_current_span("agent"):
        telemetry.emit(started("c1"))
    telemetry.emit(started("c2"))  # no span is open, and nothing fails
    (span,) = exporter.get_finished_spans()
    assert [event.name for event in span.events] == ["toolguard.started"]
    assert span.events[0].attributes["toolguard.call_id"] == "c1"


def test_without_the_api_there_is_no_tracer(monkeypatch):
    """OpenTelemetry is optional."""
    assert default_tracer() is not None
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert default_tracer() is None
