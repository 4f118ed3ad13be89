"""Print constraints.txt: one pin for each package that the project and its extras need here."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.metadata import requires, version
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
HEADER = """\
# Tested versions of everything that `make setup` installs; written by `make constraints`.
# No local version suffix: torch==2.13.0 is met by a CPU build and by an accelerator build alike.
"""
# Comes with the interpreter's own venv, in the version that fits that interpreter.
UNPINNED = {"setuptools"}


def applying(lines: Iterable[str], extras: Iterable[str] = ()) -> list[Requirement]:
    """Return the requirements among `lines` that apply on this machine with these extras."""
    found = [Requirement(line) for line in lines]
    environments = [{"extra": extra} for extra in ("", *extras)]
    return [r for r in found if not r.marker or any(map(r.marker.evaluate, environments))]


def declared() -> list[Requirement]:
    """Return what pyproject.toml names: the dependencies and every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return applying(chain(project["dependencies"], *project["optional-dependencies"].values()))


def closure(waiting: list[Requirement]) -> set[str]:
    """Return the normalised names of these requirements and of all that they need in turn."""
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, *waiting = waiting
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            waiting += applying(requires(requirement.name) or [], requirement.extras)
    return {name for name, _ in seen} - UNPINNED


if __name__ == "__main__":
    print(HEADER, end="")
    for name in sorted(closure(declared())):
        print(f"{name}=={Version(version(name)).public}")
