"""Who may use the dashboard: a token, what is derived from it, and the names it is served under."""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from toolguard.guard.errors import ConfigError

TOKEN_BYTES = 32
_SHORTEST = 22  # characters; as many as 16 random bytes need
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def new_token() -> str:
    """Return a random token, 43 letters that a URL takes as they are."""
    return secrets.token_urlsafe(TOKEN_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The token of a dashboard and what follows from it.

    Args:
        token: whoever shows it once gets the session's cookie.
        hosts: names, without port, that requests may be addressed to; any other is somebody's
            domain that was made to point here.

    Raises:
        ConfigError: if the token is too short to be a secret.
    """

    token: str = field(repr=False)
    hosts: frozenset[str] = LOOPBACK_NAMES

    def __post_init__(self) -> None:
        if len(self.token) < _SHORTEST:
            raise ConfigError(
                f"a token needs at least {_SHORTEST} characters, found {len(self.token)}",
                hint="leave it out to get a random one",
            )

    @property
    def session(self) -> str:
        """The cookie's value; the token cannot be told from it."""
        return self._derived("session")

    @property
    def cookie(self) -> str:
        """The cookie's name; browsers mix the cookies of all ports, so each dashboard has its own.

        Source: RFC 6265, section 8.5.
        """
        return f"toolguard_{self._derived('cookie')[:8]}"

    @property
    def csrf(self) -> str:
        """What every form sends back, and no other site can read."""
        return self._derived("csrf")

    def admits_token(self, shown: str) -> bool:
        """Return whether `shown` is the token, in constant time."""
        return _same(shown, self.token)

    def admits_session(self, shown: str) -> bool:
        """Return whether `shown` is the session's cookie, in constant time."""
        return _same(shown, self.session)

    def admits_form(self, shown: str) -> bool:
        """Return whether a form with this csrf value is one of ours, in constant time."""
        return _same(shown, self.csrf)

    def admits_host(self, header: str) -> bool:
        """Return whether a request with this Host header is addressed to us."""
        return _host_name(header) in self.hosts

    @staticmethod
    def admits_origin(origin: str, host: str) -> bool:
        """Return whether `origin` is the page that `host` serves; "null" and "" are not."""
        return origin in {f"http://{host}", f"https://{host}"}

    def _derived(self, purpose: str) -> str:
        return hmac.digest(self.token.encode(), f"toolguard {purpose}".encode(), "sha256").hex()


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_token(path: Path) -> str:
    """Return the token in a file; a missing file is made, for its owner alone, with a random one.

    Raises:
        ConfigError: if the file can be neither read nor made, or other users may read it.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_token(path)
    except OSError as error:
        raise ConfigError(f"cannot make the token file {path}: {error.strerror}") from error
    token = new_token()
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{token}\n")
    return token


def _read_token(path: Path) -> str:
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                f"other users can read the token file {path}", hint=f"chmod 600 {path}"
            )
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token file {path}: {error}") from error


def _same(shown: str, expected: str) -> bool:
    return hmac.compare_digest(shown.encode("utf-8", "surrogatepass"), expected.encode())


def _host_name(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""
