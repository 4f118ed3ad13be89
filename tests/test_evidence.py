"""The page of evidence: every block is what a command prints, and a small run writes them all."""

from __future__ import annotations

import page_blocks
import update_evidence
from public_records import DATA, ROOT, needs_public_records


def test_each_block_has_a_source_and_stands_once(tmp_path):
    """The blocks of the page are those that `make evidence` writes, in their order."""
    page = update_evidence.PAGE.read_text("utf-8")
    names = [found["name"] for found in page_blocks.BLOCK.finditer(page)]
    scale = update_evidence.QUICK
    evidence = update_evidence.Evidence(data=tmp_path, work=tmp_path, scale=scale)
    assert names == list(evidence.sources())


@needs_public_records
def test_a_small_run_writes_what_commands_print(tmp_path):
    """Commands run on the bundled agent, and no path of the machine is shown."""
    page = tmp_path / "page.md"
    page.write_text(update_evidence.PAGE.read_text("utf-8"))
    work = tmp_path / "work"
    chosen = ["signals-own", "votes-own", "signals-public", "guarantee"]
    only = [word for name in chosen for word in ("--only", name)]
    places = ["--data", str(DATA), "--work", str(work), "--page", str(page)]
    update_evidence.main([*places, *only, "--quick"])
    text = page.read_text("utf-8")
    bodies = {found["name"]: found["body"] for found in page_blocks.BLOCK.finditer(text)}
    for name in chosen:
        assert "$ toolguard " in bodies[name]
        assert "reference" in bodies[name]
    assert str(tmp_path) not in text
    assert str(DATA.resolve()) not in text
    assert str(ROOT) not in text
