"""A throw-away PostgreSQL server from the distribution's package, for tests of the audit store."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

USER = "postgres"
START_SECONDS = 60


class NoServerError(Exception):
    """Why no server can be started here."""


@dataclass(frozen=True)
class Server:
    """A running server that listens on a socket in `folder` alone."""

    folder: Path
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database of this server."""
        return f"postgresql://{USER}@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """Return the URL of a new, empty database."""
        import psycopg

        name = f"test_{next(self.numbers)}"
        address = f"host={self.folder} user={USER} dbname=postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def running_server() -> Iterator[Server]:
    """Give a server that ends with the block; NoServerError says why none can start."""
    programs = find_programs()
    account = server_account()
    # A socket's path may have 107 characters, so it stands in /tmp and not in pytest's folder.
    folder = Path(tempfile.mkdtemp(prefix="toolguard-pg-", dir="/tmp"))
    try:
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        data = folder / "data"
        options = ["--auth=trust", f"--username={USER}", "--encoding=UTF8", "--no-sync"]
        run([programs / "initdb", "--pgdata", data, *options], account, folder)
        settings = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=60"
        start = ["--wait", f"--timeout={START_SECONDS}", f"--log={folder / 'log'}"]
        run(
            [programs / "pg_ctl", "start", "--pgdata", data, *start, "--options", settings],
            account,
            folder,
        )
        try:
            yield Server(folder)
        finally:
            run(
                [programs / "pg_ctl", "stop", "--pgdata", data, "--mode=immediate"], account, folder
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_programs() -> Path:
    """Return the folder of initdb and pg_ctl, of the newest version installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]))
    found += [Path(path).parent for name in ("initdb",) if (path := shutil.which(name))]
    for folder in reversed(found):
        if all((folder / name).is_file() for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    raise NoServerError("no PostgreSQL server is installed (package postgresql)")


def server_account() -> pwd.struct_passwd | None:
    """Return the account to run as; None for our own. PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        raise NoServerError(f"running as root, and there is no account {USER}") from None


def run(command: list[str | Path], account: pwd.struct_passwd | None, folder: Path) -> None:
    """Run a command of the server as `account`."""
    prefix = [] if account is None else ["runuser", "-u", account.pw_name, "--"]
    # To a file: the server inherits the output, and a pipe would stay open as long as it runs.
    with (folder / "output").open("ab") as output:
        try:
            subprocess.run(
                [*prefix, *map(str, command)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=2 * START_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = (folder / "output").read_text(errors="replace").strip()[-300:]
            raise NoServerError(f"{Path(command[0]).name} failed: {error}; {said}") from error
