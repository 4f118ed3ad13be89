"""SNIPS 2017-06 custom intent engines: `train_<Intent>_full.json` and `validate_<Intent>.json`.

Intents become tools, slots become string arguments (a list where a slot occurs several times).

Source: Coucke et al., arXiv:1805.10190; the upstream file layout.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolguard.calibration.importers.upstream import (
    ImportReport,
    RecordWriter,
    UpstreamError,
    phrase_of,
    read_object,
)
from toolguard.guard.errors import DatasetError

SOURCE = "snips"
# Some of the upstream files are Latin-1, which decodes anything: it must come last.
ENCODINGS = ("utf-8-sig", "latin-1")
_PATTERNS = ("train_*_full.json", "validate_*.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Utterance:
    """One upstream item: its text and the values of each slot in order."""

    intent: str
    split: str
    path: Path
    number: int
    text: str
    slots: dict[str, list[str]]


def import_snips(inputs: Sequence[Path], out: Path) -> ImportReport:
    """Write the records of SNIPS files and return what was written.

    Args:
        inputs: files, or folders searched for them at any depth. The short `train_<Intent>.json`
            files repeat part of the full ones and are read only if named.
        out: folder for `records.jsonl` and `menus.json`.

    Raises:
        DatasetError: if a file is missing or not of this shape.
        ConfigError: if `out` holds records already.
    """
    files = [file for path in inputs for file in _files(path)]
    fields = {"generated_descriptions": True, "note": "one tool an intent, one argument a slot"}
    with RecordWriter(out=out, source=SOURCE, menu_fields=fields) as writer:
        utterances = [u for path in files for u in _utterances(path, writer)]
        if utterances:
            menu = writer.add_menu(_tools(utterances), "all")
            for utterance in utterances:
                writer.write(_record(utterance, menu), utterance.path, utterance.number)
    return writer.report()


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for pattern in _PATTERNS for file in path.rglob(pattern))
    if not found:
        raise DatasetError(
            f"{path} holds none of {', '.join(_PATTERNS)}",
            hint="name the folder with one subfolder an intent",
            path=str(path),
        )
    return found


def _utterances(path: Path, writer: RecordWriter) -> list[_Utterance]:
    split = "validate" if path.name.startswith("validate") else "train"
    found = []
    for intent, items in read_object(path, ENCODINGS).items():
        if not isinstance(items, list):
            raise DatasetError(
                f"{path}: {intent!r} must be a list, found {type(items).__name__}",
                hint='the upstream file is {"Intent": [{"data": [{"text": ...}]}]}',
                path=str(path),
            )
        for number, item in enumerate(items, start=1):
            try:
                text, slots = _read_item(item)
            except UpstreamError as error:
                writer.note(path, number, f"{intent}.{error.field}", error.message)
                continue
            utterance = _Utterance(
                intent=intent, split=split, path=path, number=number, text=text, slots=slots
            )
            found.append(utterance)
    return found


def _read_item(item: object) -> tuple[str, dict[str, list[str]]]:
    pieces = item.get("data") if isinstance(item, dict) else None
    if not isinstance(pieces, list) or not pieces:
        raise UpstreamError("data", "must be a list of pieces")
    texts: list[str] = []
    slots: defaultdict[str, list[str]] = defaultdict(list)
    for piece in pieces:
        text = piece.get("text") if isinstance(piece, dict) else None
        if not isinstance(text, str):
            raise UpstreamError("data.text", "must be a string")
        texts.append(text)
        entity = piece.get("entity")
        if isinstance(entity, str):
            slots[entity].append(text.strip())
        elif entity is not None:
            raise UpstreamError("data.entity", "must be a string")
    return "".join(texts).strip(), dict(slots)


def _tools(utterances: Iterable[_Utterance]) -> list[dict[str, Any]]:
    """Return a tool for each intent, with the slots seen in it, in the order of names."""
    most: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for utterance in utterances:
        seen = most[utterance.intent]
        for slot, values in utterance.slots.items():
            seen[slot] = max(seen[slot], len(values))
    return [
        {
            "name": intent,
            "description": f"Answer a request to {phrase_of(intent)}.",
            "parameters": {
                "type": "object",
                "properties": {slot: _slot(slot, most[intent][slot]) for slot in sorted(slots)},
            },
        }
        for intent, slots in sorted(most.items())
    ]


def _slot(name: str, most: int) -> dict[str, Any]:
    described = {"description": phrase_of(name)}
    if most < 2:
        return {"type": "string", **described}
    several = {"type": "array", "items": {"type": "string"}}
    return {"anyOf": [{"type": "string"}, several], **described}


def _record(utterance: _Utterance, menu: str) -> dict[str, Any]:
    arguments = {
        slot: values[0] if len(values) == 1 else values for slot, values in utterance.slots.items()
    }
    return {
        "id": f"{utterance.split}/{utterance.intent}/{utterance.number}",
        "split": utterance.split,
        "query": utterance.text,
        "menu": menu,
        "call": {"name": utterance.intent, "arguments": arguments},
        "tags": ["intent", "slots", "single_turn", "generated_descriptions"],
    }
