"""The public records, where they are at hand: all load, and their splits do not leak."""

from __future__ import annotations

import pytest
from public_records import DATA, needs_public_records

from toolguard.calibration.datasets.dataset import open_dataset
from toolguard.calibration.datasets.splits import leak_check, make_splits

RECORDS = 19_196

pytestmark = needs_public_records


@pytest.fixture(scope="module")
def records():
    dataset = open_dataset(sorted(path.parent for path in DATA.glob("*/records.jsonl")))
    found = list(dataset)
    assert dataset.problems == ()
    return found


def test_every_record_is_valid(records):
    """All records of all sources load without a problem, and their derived values exist."""
    assert len(records) == RECORDS
    for record in records:
        assert record.conversation_with_system()
        assert bool(record.right_names) == record.is_call
        assert record.right_names <= {tool.name for tool in record.tools}


def test_splits_of_all_records_do_not_leak(records):
    """No query has a near duplicate in another split, and each tool can be fitted."""
    splits = make_splits(records)
    leak_check(splits)
    groups = splits.counts()
    assert abs(groups["fit"] / RECORDS - 0.5) < 0.03
