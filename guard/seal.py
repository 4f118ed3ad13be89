"""A keyed seal: digests that only the key's holder can make, for arguments and records."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import canonical_json

KEY_VARIABLE = "TOOLGUARD_KEY"
KEY_BYTES = 32
_PREFIX = "hmac-sha256:"
_AS_IT_IS = "surrogatepass"  # models can write half a surrogate pair


class Seal:
    """Digests and signatures by HMAC-SHA-256 over canonical JSON; threads may share it.

    Whoever lacks the key can neither guess an argument from its digest nor forge a record.

    Args:
        key: at least 16 bytes; by default random, so that nothing sealed outlives the process.

    Raises:
        ConfigError: if the key is shorter.

    Source: RFC 2104 (HMAC).
    """

    def __init__(self, key: bytes | None = None) -> None:
        key = secrets.token_bytes(KEY_BYTES) if key is None else key
        if len(key) < 16:
            raise ConfigError(f"a key needs at least 16 bytes, found {len(key)}")
        self._key = key

    @property
    def key(self) -> bytes:
        """The key; never log it."""
        return self._key

    def digest(self, value: object) -> str:
        """Return `hmac-sha256:` and 64 hex digits; equal for equal JSON values.

        A value that is no JSON, or too deep, raises what `json` raises.
        """
        return _PREFIX + self._hmac(b"digest:", value)

    def sign(self, value: object) -> str:
        """Return 64 hex digits over the value's canonical JSON, which `holds` takes.

        A digest is no signature: models choose what is digested, and must not have it signed.
        """
        return self._hmac(b"sign:", value)

    def holds(self, value: Mapping[str, Any], signature: object) -> bool:
        """Return whether `signature` is this value's, in constant time."""
        if not isinstance(signature, str):
            return False
        try:
            expected = self.sign(value)
        except (TypeError, ValueError, RecursionError):  # no JSON: nobody has signed it
            return False
        return hmac.compare_digest(expected.encode(), signature.encode("utf-8", _AS_IT_IS))

    def _hmac(self, purpose: bytes, value: object) -> str:
        text = canonical_json(value).encode("utf-8", _AS_IT_IS)
        return hmac.digest(self._key, purpose + text, "sha256").hex()


def load_key(path: Path | None = None) -> bytes:
    """Return the key from the environment (`TOOLGUARD_KEY`, hex) or from a file.

    A missing file is made, readable by its owner alone, with a random key.

    Args:
        path: of the file; without it and without the variable the key is random.

    Raises:
        ConfigError: if the variable or the file holds no hex key of 16 bytes or more, or the file
            can be neither read nor made.
    """
    if text := os.environ.get(KEY_VARIABLE):
        return _parsed(text, f"the variable {KEY_VARIABLE}")
    if path is None:
        return secrets.token_bytes(KEY_BYTES)
    try:
        return _parsed(path.read_text("ascii"), f"the key file {path}")
    except FileNotFoundError:
        return _made(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the key file {path}: {error}", path=str(path)) from error


def _parsed(text: str, where: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) < 16:
        raise ConfigError(
            f"{where} holds no key",
            hint="write at least 32 hex digits, for example from: openssl rand -hex 32",
        )
    return key


def _made(path: Path) -> bytes:
    """Return the key of the new file; of two processes that start together one makes it."""
    key = secrets.token_bytes(KEY_BYTES)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        partial.touch(mode=0o600, exist_ok=False)
        partial.write_text(key.hex() + "\n", encoding="ascii")
        try:
            os.link(partial, path)  # fails if the file is there: the other process's key counts
        except FileExistsError:
            return _parsed(path.read_text("ascii"), f"the key file {path}")
        finally:
            partial.unlink()
    except OSError as error:
        raise ConfigError(f"cannot make the key file {path}: {error}", path=str(path)) from error
    return key
