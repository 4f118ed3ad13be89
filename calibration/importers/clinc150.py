"""CLINC150: `data_full.json`, and `domains.json` beside it for menus of one domain each.

Intents become tools without arguments; out-of-scope queries become records without a call.

Source: Larson et al., "An evaluation dataset for intent classification and out-of-scope
prediction", EMNLP 2019; the upstream file layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from toolguard.calibration.importers.upstream import (
    ImportReport,
    RecordWriter,
    UpstreamError,
    phrase_of,
    read_object,
)
from toolguard.guard.errors import DatasetError

SOURCE = "clinc150"
DATA_FILE = "data_full.json"
DOMAINS_FILE = "domains.json"
OUT_OF_SCOPE = "oos"
_TAGS = ["single_turn", "generated_descriptions"]


def import_clinc150(inputs: Sequence[Path], out: Path) -> ImportReport:
    """Write the records of `data_full.json` files and return what was written.

    Args:
        inputs: files, or folders that hold a `data_full.json`.
        out: folder for `records.jsonl` and `menus.json`.

    Raises:
        DatasetError: if a file is missing or not of this shape.
        ConfigError: if `out` holds records already.
    """
    files = [path / DATA_FILE if path.is_dir() else path for path in inputs]
    parts = {path: _parts_of(path) for path in files}
    fields = {"generated_descriptions": True, "note": "one tool an intent; no arguments"}
    with RecordWriter(out=out, source=SOURCE, menu_fields=fields) as writer:
        for path, splits in parts.items():
            menus = _add_menus(writer, path, splits)
            for split, items in splits.items():
                for number, item in enumerate(items, start=1):
                    try:
                        record = _record(split, number, item, menus)
                    except UpstreamError as error:
                        writer.note(path, number, f"{split}.{error.field}", error.message)
                    else:
                        writer.write(record, path, number)
    return writer.report()


def _parts_of(path: Path) -> dict[str, list[object]]:
    """Return the items by upstream split."""
    parts = read_object(path)
    for split, items in parts.items():
        if not isinstance(items, list):
            raise DatasetError(
                f"{path}: {split!r} must be a list, found {type(items).__name__}",
                hint='the upstream file is {"train": [[text, intent], ...], ...}',
                path=str(path),
            )
    return parts


def _add_menus(
    writer: RecordWriter, path: Path, splits: Mapping[str, Sequence[object]]
) -> dict[str, str]:
    """Return the menu id for each intent: its domain's menu, or one menu of all intents."""
    intents = sorted(
        {
            item[1]
            for items in splits.values()
            for item in items
            if _is_pair(item) and item[1] != OUT_OF_SCOPE
        }
    )
    menus: dict[str, str] = {}
    for domain, names in _domains(path.parent / DOMAINS_FILE, intents).items():
        menu = writer.add_menu([_tool(name) for name in names], domain)
        menus |= dict.fromkeys(names, menu)
    rest = [intent for intent in intents if intent not in menus]
    if rest:
        menus |= dict.fromkeys(rest, writer.add_menu([_tool(name) for name in rest], "all"))
    return menus


def _domains(path: Path, intents: Sequence[str]) -> dict[str, list[str]]:
    """Return the intents of each domain, as far as they occur in the data."""
    if not path.is_file():
        return {}
    domains: dict[str, list[str]] = {}
    for domain, names in read_object(path).items():
        if not isinstance(names, list):
            raise DatasetError(f"{path}: {domain!r} must be a list of intents", path=str(path))
        if known := [name for name in names if name in intents]:
            domains[domain] = known
    return domains


def _tool(intent: str) -> dict[str, Any]:
    return {
        "name": intent,
        "description": f"Answer a request about {phrase_of(intent)}.",
        "parameters": {"type": "object", "properties": {}},
    }


def _is_pair(item: object) -> TypeGuard[list[str]]:
    return isinstance(item, list) and len(item) == 2 and all(isinstance(i, str) for i in item)


def _record(split: str, number: int, item: object, menus: Mapping[str, str]) -> dict[str, Any]:
    if not _is_pair(item):
        raise UpstreamError(str(number), "must be [text, intent]")
    text, intent = item
    identity = f"{split}/{number}"
    record = {"id": identity, "split": split, "query": text}
    if intent != OUT_OF_SCOPE:
        tags = ["intent", "no_args", *_TAGS]
        call = {"name": intent, "arguments": {}}
        return {**record, "menu": menus[intent], "call": call, "tags": tags}
    if not menus:
        raise UpstreamError(str(number), "there is no intent to make a menu from")
    # Out of scope of every menu: any will do, chosen by content so that all are met.
    choices = sorted(set(menus.values()))
    pick = int(hashlib.sha256(identity.encode()).hexdigest(), 16) % len(choices)
    tags = ["abstain", "out_of_scope", *_TAGS]
    return {**record, "menu": choices[pick], "call": None, "tags": tags}
