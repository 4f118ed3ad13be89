"""Where the public records lie, and the mark of tests that need them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TOOLGUARD_DATA") or ROOT / ".." / "shared" / "data")

needs_public_records = pytest.mark.skipif(
    not any(DATA.glob("*/records.jsonl")),
    reason="needs the public records: set TOOLGUARD_DATA to their folder",
)
