"""Observations on disk, so that a calibration that was interrupted goes on where it stopped.

    spool.json               the key: which model, data and options the observations belong to
    shard-000000.safetensors scores and hidden states of some hundred observations; its header
    shard-000001.safetensors holds, as JSON, everything else about them

Every shard stands for itself and appears whole or not at all. Memory holds one shard, and eight
bytes an id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from toolguard.calibration.reading.collect import Observation
from toolguard.guard.errors import ConfigError, ShapeError
from toolguard.guard.tools import canonical_json

VERSION = 1
KEY_FILE = "spool.json"
SHARD_ROWS = 512
_SHARD_VALUES = 16 * 2**20  # numbers of hidden states in one shard: 64 MiB
_HEADER = "observations"


class Spool:
    """A folder of observations, appended to in order and read in the same order.

    Use it as a context: what was appended is on disk when the context is left, also by an
    exception. Without one, call `flush`.
    """

    def __init__(self, folder: Path, *, shard_rows: int = SHARD_ROWS) -> None:
        self._folder = folder
        self._shard_rows = shard_rows
        self._pending: list[Observation] = []
        self._done: set[int] = set()
        self._count = 0
        self._shape: tuple[int, ...] | None = None  # (layers, dim) of every observation

    @classmethod
    def open(
        cls,
        folder: Path,
        key: Mapping[str, Any],
        *,
        on_restart: Callable[[str], None] | None = None,
        shard_rows: int = SHARD_ROWS,
    ) -> Spool:
        """Return the spool in `folder`, with what is there if it was made under the same key.

        Args:
            folder: made if it is not there; only the spool's own files in it are ever removed.
            key: all that decides the observations, as JSON values: model, data, options.
            on_restart: told why, if observations that are there cannot be used and are removed.
            shard_rows: most observations in one shard, so in memory at once.

        Raises:
            ConfigError: if the folder cannot be used.
        """
        spool = cls(folder, shard_rows=shard_rows)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            reason = spool._load(canonical_json(dict(key)))
            if reason is not None:
                spool._start_anew(canonical_json(dict(key)))
        except OSError as error:
            raise ConfigError(
                f"cannot keep observations in {folder}: {error.strerror}",
                hint="name a folder that can be written to",
                path=str(folder),
            ) from None
        if reason and on_restart is not None:
            on_restart(reason)
        return spool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.flush()

    def __len__(self) -> int:
        return self._count

    def __contains__(self, record_id: object) -> bool:
        """Tell whether a record is observed, so that a spool can be `done` of `collect`."""
        return isinstance(record_id, str) and _short_hash(record_id) in self._done

    @property
    def done_ids(self) -> frozenset[str]:
        """Ids of all observed records, read from the shards; `in` on the spool is cheaper."""
        ids = {row["id"] for shard in self._shards() for row in _read_header(shard)["rows"]}
        return frozenset(ids | {observation.record_id for observation in self._pending})

    def append(self, observation: Observation) -> None:
        """Add one observation; it is on disk once a shard is full or `flush` is called.

        Raises:
            ConfigError: if its record is observed already.
            ShapeError: if its hidden states have another shape than those before.
        """
        if observation.record_id in self:
            raise ConfigError(
                f"record {observation.record_id!r} is observed already",
                hint="ids must be unique over all data",
                record_id=observation.record_id,
            )
        shape = tuple(observation.hidden.shape)
        if self._shape not in {None, shape}:
            raise ShapeError(
                f"hidden states of {observation.record_id!r}: expected {self._shape}, found {shape}"
            )
        self._shape = shape
        self._pending.append(observation)
        self._done.add(_short_hash(observation.record_id))
        self._count += 1
        values = len(self._pending) * observation.hidden.numel()
        if len(self._pending) >= self._shard_rows or values >= _SHARD_VALUES:
            self.flush()

    def flush(self) -> None:
        """Write what was appended since the last shard as a shard of its own."""
        if not self._pending:
            return
        path = self._folder / f"shard-{self._next_number():06d}.safetensors"
        _write_shard(path, self._pending)
        self._pending = []

    def __iter__(self) -> Iterator[Observation]:
        """Yield the observations in the order in which they were appended, a shard at a time."""
        for shard in self._shards():
            yield from _read_shard(shard)
        yield from tuple(self._pending)

    def _shards(self) -> list[Path]:
        return sorted(self._folder.glob("shard-[0-9]*.safetensors"))

    def _next_number(self) -> int:
        shards = self._shards()
        return int(shards[-1].stem.removeprefix("shard-")) + 1 if shards else 0

    def _load(self, key: str) -> str | None:
        """Take up what is there; return why it cannot be used ("" if nothing is), or None."""
        file = self._folder / KEY_FILE
        if not file.exists():
            return "there are observations without a key" if self._shards() else ""
        if (changed := _changed_keys(file, key)) is not None:
            return changed
        try:
            for shard in self._shards():
                header = _read_header(shard)
                self._done.update(_short_hash(row["id"]) for row in header["rows"])
                self._count += len(header["rows"])
                self._shape = tuple(header["hidden_shape"])
        except (SafetensorError, ValueError, KeyError, TypeError):
            self._done, self._count, self._shape = set(), 0, None
            return f"{shard.name} is damaged"
        return None

    def _start_anew(self, key: str) -> None:
        # The key goes first: shards without one are never taken for this key's.
        (self._folder / KEY_FILE).unlink(missing_ok=True)
        for shard in self._shards():
            shard.unlink()
        text = json.dumps({"version": VERSION, "key": json.loads(key)}, indent=2)
        with _replacing(self._folder / KEY_FILE) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def _short_hash(record_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(record_id.encode(), digest_size=8).digest())


def _changed_keys(file: Path, key: str) -> str | None:
    """Return which parts of the key differ from the stored one, or None if none does."""
    try:
        stored = json.loads(file.read_text("utf-8"))
    except ValueError:
        return f"{file.name} is damaged"
    if not isinstance(stored, dict) or stored.get("version") != VERSION:
        return "the observations are of another version"
    old, new = stored.get("key"), json.loads(key)
    if not isinstance(old, dict):
        return f"{file.name} is damaged"
    changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return f"changed since: {', '.join(changed)}" if changed else None


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` if nothing fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_shard(path: Path, observations: Sequence[Observation]) -> None:
    menus: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
    rows = [_row(observation, menus) for observation in observations]
    header = {
        "version": VERSION,
        "hidden_shape": list(observations[0].hidden.shape),
        "menus": [{"names": names, "hashes": hashes} for names, hashes in menus],
        "rows": rows,
    }
    tensors = {
        "scores": torch.cat([observation.scores for observation in observations]),
        "hidden": torch.stack([observation.hidden for observation in observations]),
    }
    with _replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_HEADER: json.dumps(header)})


def _row(
    observation: Observation, menus: dict[tuple[tuple[str, ...], tuple[str, ...]], int]
) -> dict[str, Any]:
    """Return all of an observation but its tensors; a new menu is added to `menus`."""
    menu = (observation.menu_names, observation.menu_hashes)
    return {
        "id": observation.record_id,
        "query_hash": observation.query_hash,
        "menu": menus.setdefault(menu, len(menus)),
        "label": observation.label,
        "right": sorted(observation.right),
        "chosen": observation.chosen,
    }


def _read_header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as shard:
        header: dict[str, Any] = json.loads((shard.metadata() or {})[_HEADER])
    return header


def _read_shard(path: Path) -> Iterator[Observation]:
    header = _read_header(path)
    with safe_open(path, framework="pt") as shard:
        scores: Tensor = shard.get_tensor("scores")
        hidden: Tensor = shard.get_tensor("hidden")
    menus = [(tuple(menu["names"]), tuple(menu["hashes"])) for menu in header["menus"]]
    start = 0
    for index, row in enumerate(header["rows"]):
        names, hashes = menus[row["menu"]]
        end = start + len(names)
        # Cloned: a kept observation must not keep its whole shard.
        yield Observation(
            record_id=row["id"],
            query_hash=row["query_hash"],
            menu_names=names,
            menu_hashes=hashes,
            label=row["label"],
            right=frozenset(row["right"]),
            chosen=row["chosen"],
            scores=scores[start:end].clone(),
            hidden=hidden[index].clone(),
        )
        start = end
