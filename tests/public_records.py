"""Where the public records lie, and the mark of tests that need them."""

from __future__ import annotations

from pathlib import Path

import pytest
from workloads import public_folder

ROOT = Path(__file__).resolve().parents[1]
DATA = public_folder()

needs_public_records = pytest.mark.skipif(
    not any(DATA.glob("*/records.jsonl")),
    reason="needs the public records: set TOOLGUARD_DATA to their folder",
)
