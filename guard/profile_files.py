"""The files of a profile's folder: bytes in and out, nothing of what they mean.

`profile.json` holds the facts (`guard.profile_meta`), `profile.safetensors` the tensors, and a
third file the fingerprints of the queries that fitted or selected anything. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from toolguard.guard.errors import ArtifactMismatch, ConfigError
from toolguard.guard.profile_meta import ProfileMeta

META_FILE = "profile.json"
TENSORS_FILE = "profile.safetensors"
AGAIN = "calibrate again with `toolguard calibrate`"
_SEEN_KEY = "fingerprints"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProfileFiles:
    """What the files hold, each part valid by itself."""

    meta: ProfileMeta
    tensors: Mapping[str, Tensor]
    seen: Tensor


def write_profile_files(
    folder: Path, meta: ProfileMeta, tensors: Mapping[str, Tensor], seen: Tensor
) -> None:
    """Write the three files, each whole, the facts with the tensors' hash last.

    If writing is cut off between two files, the hash no longer fits and reading refuses.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    data = tensors_to_bytes(dict(tensors))
    facts = meta.model_copy(update={"tensors_sha256": hashlib.sha256(data).hexdigest()})
    text = json.dumps(facts.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    contents = {
        meta.seen: tensors_to_bytes({_SEEN_KEY: seen.contiguous()}),
        TENSORS_FILE: data,
        META_FILE: f"{text}\n".encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Inside the folder, so that a rename never crosses file systems.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as waiting:
            for name, content in contents.items():
                (Path(waiting) / name).write_bytes(content)
            for name in contents:
                (Path(waiting) / name).replace(folder / name)
    except OSError as error:
        raise ConfigError(
            f"the profile cannot be written to {folder}: {error.strerror}",
            hint="pass --out a folder that can be written",
        ) from error


def read_profile_files(folder: Path) -> ProfileFiles:
    """Return what the three files hold.

    Raises:
        ConfigError: if one is missing.
        ArtifactMismatch: if one is damaged, of another version, or not written with the others.
    """
    meta = _read_meta(folder / META_FILE)
    data = _read(folder / TENSORS_FILE)
    if hashlib.sha256(data).hexdigest() != meta.tensors_sha256:
        raise damaged(folder / TENSORS_FILE, f"it is not the one {META_FILE} was written with")
    tensors = _parse_tensors(folder / TENSORS_FILE, data)
    seen = _parse_tensors(folder / meta.seen, _read(folder / meta.seen))
    if set(seen) != {_SEEN_KEY}:
        raise damaged(folder / meta.seen, f"it lacks {_SEEN_KEY!r}")
    return ProfileFiles(meta=meta, tensors=tensors, seen=seen[_SEEN_KEY])


def damaged(path: Path, reason: str) -> ArtifactMismatch:
    """Return the error for a file or folder that cannot be used."""
    return ArtifactMismatch(f"{path} cannot be used: {reason}", hint=AGAIN, path=str(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"there is no profile at {path.parent}: {path.name}: {error.strerror}",
            hint="pass the folder that `toolguard calibrate --out` wrote",
            path=str(path),
        ) from error


def _read_meta(path: Path) -> ProfileMeta:
    try:
        value = json.loads(_read(path).decode())
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is not JSON: {error}") from error
    try:
        return ProfileMeta.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise damaged(path, f"{where}: {first['msg']}") from error


def _parse_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return tensors_from_bytes(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, f"it is not safetensors: {error}") from error
