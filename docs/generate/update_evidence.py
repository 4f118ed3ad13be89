"""Puts measurements of the bundled agent into docs/EVIDENCE.md; `make evidence` runs it.

It needs the folder of public records, and takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from page_blocks import Source, command_output, command_text, refresh

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "EVIDENCE.md"
WORK = ROOT / "out" / "evidence"
PLACEHOLDER = "_Not measured yet; `make evidence` writes this block._"
MODEL = ("--model", "reference")
LEARNED = ("snips", "clinc150", "hwu64")  # the agent learned from a part of these
OWN = "curated"
PUBLIC = ("snips", "clinc150")
OPENINGS = ("clinc150", "bfcl", "when2call", "api_bank")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured.

    Args:
        records: records that a profile is made from.
        fresh: further records that it is measured on.
        turns: queries on which the whole turn is written.
        flagged: doubtful calls that are corrected.
        pairs: pairs of tools in each cell of the steering.
        openings: records of a source that call for the same next step.
        splits: random splits, and draws of each window.
        examples: fewest right calls that a tool's mean is made from.
    """

    records: int = 1600
    fresh: int = 1500
    turns: int = 200
    flagged: int = 300
    pairs: int = 300
    openings: int = 300
    splits: int = 500
    examples: int = 3


FULL = Scale()
QUICK = Scale(
    records=200, fresh=60, turns=4, flagged=4, pairs=4, openings=12, splits=20, examples=1
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The measurements behind the page.

    Args:
        data: folder of the public sources.
        work: holds data and profiles.
        scale: how much is measured.
    """

    data: Path
    work: Path
    scale: Scale

    def prepare(self) -> None:
        """Write the queries that the agent never learned from, and the project's own, anew."""
        shutil.rmtree(self.work, ignore_errors=True)
        for source in LEARNED:
            given = ("--data", str(self.data / source), "--out", self._place(source))
            command_text("data", "unseen", *MODEL, *given)
        command_text("data", "curated", "--out", self._place(OWN))

    def calibrate(self, name: str, sources: Sequence[str], *options: str) -> str:
        """Make the profile `name` from unseen records."""
        sizes = ("--limit", str(self.scale.records), "--min-examples", str(self.scale.examples))
        given = (*MODEL, *self._data(sources), *sizes, *options)
        return self._shown("calibrate", *given, "--out", self._profile(name))

    def votes(self, name: str, sources: Sequence[str]) -> str:
        """Compare all votes on fresh calls."""
        sizes = ("--limit", str(self.scale.fresh), "--turns", str(self.scale.turns))
        rest = ("--steering", "0", "--no-call", "0", "--votes", "all")
        return self._shown("evaluate", *self._profiled(name), *self._data(sources), *sizes, *rest)

    def guarantee(self) -> str:
        """Verify the thresholds at home, and look at them elsewhere."""
        sizes = ("--splits", str(self.scale.splits), "--repeats", str(self.scale.splits))
        chosen = (*self._data(PUBLIC), "--shifted", self._place("hwu64"))
        limit = ("--limit", str(self.scale.fresh))
        return self._shown("guarantee", *self._profiled("public"), *chosen, *limit, *sizes)

    def openings(self) -> str:
        """Tell needless calls where they could start."""
        most = ("--most", str(self.scale.openings))
        return self._shown("call-or-answer", *MODEL, *self._data(OPENINGS), *most)

    def corrections(self) -> str:
        """Compare what can be done with doubtful calls."""
        flagged = ("--flagged", str(self.scale.flagged))
        return self._shown("correct", *self._profiled("hwu64"), *self._data(("hwu64",)), *flagged)

    def steering(self, name: str, sources: Sequence[str]) -> str:
        """Push the hidden state, and see what becomes of the call."""
        sizes = ("--pairs", str(self.scale.pairs), "--calls", str(self.scale.pairs))
        return self._shown("steer-eval", *self._profiled(name), *self._data(sources), *sizes)

    def sources(self) -> Mapping[str, Source]:
        """Return what gives the blocks of the page, in their order."""
        return {
            "signals-own": partial(self.calibrate, "own", (OWN,)),
            "signals-public": partial(self.calibrate, "public", PUBLIC),
            "signals-hwu64": partial(self.calibrate, "hwu64", ("hwu64",), "--max-risk", "0.2"),
            "signals-dialogues": partial(self.calibrate, "dialogues", ("sgd",)),
            "votes-own": partial(self.votes, "own", (OWN,)),
            "votes-public": partial(self.votes, "public", PUBLIC),
            "votes-dialogues": partial(self.votes, "dialogues", ("sgd",)),
            "guarantee": self.guarantee,
            "call-or-answer": self.openings,
            "corrections": self.corrections,
            "steering-own": partial(self.steering, "own", (OWN,)),
            "steering-public": partial(self.steering, "public", PUBLIC),
            "steering-dialogues": partial(self.steering, "dialogues", ("sgd",)),
        }

    def _place(self, source: str) -> str:
        """Return the folder of a source's records that the agent never learned from."""
        written = source in LEARNED or source == OWN
        return str(self.work / "data" / source if written else self.data / source)

    def _profile(self, name: str) -> str:
        return str(self.work / "profiles" / name)

    def _profiled(self, name: str) -> tuple[str, ...]:
        return ("--profile", self._profile(name), *MODEL)

    def _data(self, sources: Sequence[str]) -> tuple[str, ...]:
        return tuple(word for name in sources for word in ("--data", self._place(name)))

    def _shown(self, *words: str) -> str:
        text = command_output(*words)
        return text.replace(str(self.data), "DATA").replace(str(self.work), "out/evidence")


def main(words: Sequence[str] | None = None) -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public records")
    parser.add_argument("--work", type=Path, default=WORK, help="scratch folder")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the marked blocks")
    parser.add_argument("--quick", action="store_true", help="few records: shows that it runs")
    parser.add_argument(
        "--only", action="append", help="a block to write from what the scratch folder holds"
    )
    chosen = parser.parse_args(words)
    scale = QUICK if chosen.quick else FULL
    evidence = Evidence(data=chosen.data.resolve(), work=chosen.work.resolve(), scale=scale)
    sources = evidence.sources()
    if unknown := set(chosen.only or ()) - set(sources):
        parser.error(f"unknown block {', '.join(sorted(unknown))}; known: {', '.join(sources)}")
    if not chosen.only or not evidence.work.exists():
        evidence.prepare()
    for name in chosen.only or sources:  # one at a time: what was measured is kept
        text = refresh(chosen.page.read_text("utf-8"), sources, PLACEHOLDER, only=(name,))
        chosen.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
