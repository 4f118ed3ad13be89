"""The checker that every label comes from: what a model called, held against its record.

No call, a wrong tool and wrong arguments are kept apart, for they are different faults: a guard
that reads the choice of a tool can see the second and never the third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy.optimize import linear_sum_assignment

from toolguard.adapters.wire import WireFormat
from toolguard.calibration.datasets.records import UNORDERED, Record
from toolguard.calibration.labels.argument_match import accepted_arguments, same_arguments
from toolguard.guard.errors import ParseError
from toolguard.guard.tools import ToolCall

Outcome = Literal[
    "right",
    "wrong_tool",  # a tool was right, another one was called
    "wrong_arguments",  # the right tool, with values that the label does not accept
    "missing_call",  # a tool was right, none (or too few) was called
    "unwanted_call",  # no tool was right, or more were called than are
    "malformed",  # the text opens a call that cannot be parsed
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_OTHER_TOOL, _NAME_ALONE, _WHOLE = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """One right call.

    Args:
        arguments: by tool name; several names are alternatives.
        alternatives: whether they are lists of accepted values.
    """

    arguments: Mapping[str, Mapping[str, Any]]
    alternatives: bool

    def agreement(self, call: ToolCall, record: Record) -> int:
        """Return how far the call agrees: not at all, in its name, or as a whole."""
        if call.name not in self.arguments:
            return _OTHER_TOOL
        tool = record.menu.get(call.name)
        schema = tool.parameters if tool else {}
        label = self.arguments[call.name]
        agree = accepted_arguments if self.alternatives else same_arguments
        return _WHOLE if agree(call.arguments, label, schema) else _NAME_ALONE


def check_name(record: Record, name: str | None) -> Outcome:
    """Return what the choice of a tool is, whatever its arguments; None is no call."""
    if name is None:
        return "missing_call" if record.is_call else "right"
    if not record.is_call:
        return "unwanted_call"
    return "right" if name in record.right_names else "wrong_tool"


def check_call(record: Record, call: ToolCall | None) -> Outcome:
    """Return what one call is as the next one of its record; None is no call.

    This is the call at the decision token. Where calls have no order, each of them may be next.
    """
    if (named := check_name(record, call.name if call else None)) != "right" or call is None:
        return named
    expected = _expected(record)
    if _ordered(record):
        expected = expected[:1]
    found = max(each.agreement(call, record) for each in expected)
    return "right" if found == _WHOLE else "wrong_arguments"


def check_turn(record: Record, calls: Sequence[ToolCall]) -> Outcome:
    """Return what all calls of one turn are together.

    Calls without an order are matched as well as they can be, and all have to be there. Calls in
    order may stop early: the next ones may have to wait for a result. Of several faults the first
    of these counts: a wrong tool, wrong arguments, a call too many, a call too few.
    """
    expected = _expected(record)
    if not calls or not expected:
        return check_name(record, calls[0].name if calls else None)
    table = np.array([[each.agreement(call, record) for each in expected] for call in calls])
    pairs = table.diagonal() if _ordered(record) else _best_pairs(table)
    if (pairs == _OTHER_TOOL).any():
        return "wrong_tool"
    if (pairs == _NAME_ALONE).any():
        return "wrong_arguments"
    if len(calls) > len(expected):
        return "unwanted_call"
    if len(calls) < len(expected) and not _ordered(record):
        return "missing_call"
    return "right"


def check_text(record: Record, text: str, wire: WireFormat) -> Outcome:
    """Return what a whole assistant turn is, from the text that the model wrote.

    In a format that writes no arguments the first name is all there is to check.

    Raises:
        ConfigError: if the record offers no tools.
    """
    try:
        turn = wire.parse(text, menu=record.menu)
    except ParseError:
        return "malformed"
    if not wire.writes_arguments:
        return check_name(record, turn.calls[0].name if turn.calls else None)
    return check_turn(record, turn.calls)


def _expected(record: Record) -> tuple[_Expected, ...]:
    if record.call is None:
        return ()
    if record.accept:
        return tuple(_Expected(arguments=entry, alternatives=True) for entry in record.accept)
    calls = record.calls or (record.call,)
    return tuple(
        _Expected(arguments={call.name: call.arguments}, alternatives=False) for call in calls
    )


def _ordered(record: Record) -> bool:
    """Return whether calls follow each other; `Record.right_names` draws the same line."""
    return not record.accept and UNORDERED not in record.tags


def _best_pairs(table: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the agreements of the assignment with most whole calls, then most right names."""
    weights = np.where(table == _WHOLE, min(table.shape) + 1, table)
    rows, columns = linear_sum_assignment(weights, maximize=True)
    found: np.ndarray[Any, Any] = table[rows, columns]
    return found
