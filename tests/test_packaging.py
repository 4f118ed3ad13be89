"""What is shipped: packages, package data, licences, pins, and the names packages import under."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("guard", "adapters", "calibration")
# An accelerator build of torch brings these; the pins were made with a CPU build.
ACCELERATOR = re.compile(r"nvidia-|cuda-|triton")


def read_pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_of(folder: Path) -> str:
    return ".".join(("toolguard", *folder.relative_to(ROOT).parts))


def source_files() -> list[Path]:
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return sorted(p for p in found if p.is_file() and "__pycache__" not in p.parts)


def shipped_data() -> set[Path]:
    return {
        path
        for package, patterns in read_pyproject()["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
        if path.is_file()
    }


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): pin for name, pin in pairs}


def test_packages_list_equals_the_tree() -> None:
    """Every folder that holds Python is listed as a package, and nothing else is."""
    listed = read_pyproject()["tool"]["setuptools"]["packages"]
    held = {package_of(path.parent) for path in source_files() if path.suffix == ".py"}
    assert sorted(listed) == sorted(held)


def test_every_package_has_an_init_with_a_docstring() -> None:
    """Each listed package is a regular package that says what it is for."""
    for package in read_pyproject()["tool"]["setuptools"]["packages"]:
        init = ROOT.joinpath(*package.split(".")[1:], "__init__.py")
        assert init.read_text().startswith('"""'), init


def test_every_data_file_is_shipped() -> None:
    """A file beside the code that no package-data pattern names would vanish from the wheel."""
    data = {path for path in source_files() if path.suffix != ".py"}
    assert data == shipped_data()


@pytest.mark.parametrize(
    ("package", "pattern"),
    [
        (package, pattern)
        for package, patterns in read_pyproject()["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
    ],
)
def test_every_data_pattern_finds_a_file(package: str, pattern: str) -> None:
    """No pattern has outlived the files it was written for."""
    assert any(ROOT.joinpath(*package.split(".")[1:]).glob(pattern))


@pytest.mark.parametrize("folder", FOLDERS)
def test_type_checkers_see_the_real_folders(folder: str) -> None:
    """typings/toolguard links to each package, so that a new file needs no second entry."""
    link = ROOT / "typings" / "toolguard" / folder
    assert link.is_symlink()
    assert link.resolve() == ROOT / folder


def test_packages_refuse_to_import_under_another_name() -> None:
    """With the root on the path, `import adapters` is refused, and so is each sub-package."""
    packages = read_pyproject()["tool"]["setuptools"]["packages"]
    names = [package.removeprefix("toolguard.") for package in packages]
    code = f"""
import importlib, sys
sys.path.insert(0, {str(ROOT)!r})
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if "import this package as toolguard." not in str(error):
            sys.exit(f"{{name}}: {{error}}")
    else:
        sys.exit(f"{{name}} was imported")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_constraints_pin_all_that_is_declared() -> None:
    """Every dependency and extra has a pin, and the pin is within the declared range."""
    project = read_pyproject()["project"]
    lines = chain(project["dependencies"], *project["optional-dependencies"].values())
    for requirement in map(Requirement, lines):
        pin = pins().get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement} is pinned to {pin}"


def test_constraints_pin_all_that_is_installed_with_it() -> None:
    """What the dependencies need in turn is pinned too, so that a later install is the same."""
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "freeze.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    needed = {line.split("==")[0] for line in done.stdout.splitlines() if not line.startswith("#")}
    assert {name for name in needed - pins().keys() if not ACCELERATOR.match(name)} == set()


def test_constraints_carry_no_local_version() -> None:
    """A pin such as 2.13.0+cpu would be met only where that very build is offered."""
    assert not [name for name, pin in pins().items() if "+" in pin]


def test_installed_version_is_the_declared_one() -> None:
    """The metadata that `toolguard --version` reads agrees with pyproject.toml."""
    assert version("toolguard-margin") == read_pyproject()["project"]["version"]


def test_licence_files_exist() -> None:
    """What license-files names is there, and the licence is the declared one."""
    for name in read_pyproject()["project"]["license-files"]:
        assert (ROOT / name).is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_changelog_has_the_declared_version() -> None:
    """Every version has its section in the change log, released or not."""
    declared = read_pyproject()["project"]["version"]
    assert f"## [{declared}]" in (ROOT / "CHANGELOG.md").read_text()
