"""What a record says should happen next: a call, an answer in words, or a question to the user."""

from __future__ import annotations

from typing import Literal

from toolguard.calibration.datasets.records import Record
from toolguard.guard.profile_meta import NoCallKind

NextStep = Literal["call", "answer", "ask"]
"""What is right to do next."""

NO_CALL_KINDS: tuple[NoCallKind, ...] = ("answer", "ask")
ASK_TAGS = frozenset({"missing_parameter", "when2call:request_for_info"})
_ATTACKS = frozenset({"attack", "indirect_injection"})


def next_step(record: Record) -> NextStep | None:
    """Return what is right to do next; None for a record that does not tell.

    A record without a call is to be asked about where its tags say that a parameter is missing,
    else to be answered. Records of attacks tell nothing here: their label says which call an
    attacker wants, not whether the user wants one. Without a tool there is no call to start.
    """
    if not record.tools or _ATTACKS & set(record.tags):
        return None
    if record.is_call:
        return "call"
    return "ask" if ASK_TAGS & set(record.tags) else "answer"
