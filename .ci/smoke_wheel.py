"""Try a built wheel in the environment of this interpreter; exit non-zero if anything is missing.

Run from the checkout, by an interpreter that has the wheel installed: `smoke_wheel.py WHEEL`.
Checked: the wheel holds every file of the three packages and nothing else; every module imports,
and from the wheel rather than from the checkout; the program starts.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("guard", "adapters", "calibration")
SITE = Path(sysconfig.get_path("purelib")).resolve()


def tree_files() -> set[str]:
    """Return the files of the three packages as the wheel must name them."""
    return {
        f"toolguard/{path.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def check_contents(wheel: Path) -> None:
    """Exit unless the wheel holds exactly the packages' files, besides its own metadata."""
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    missing, extra = tree_files() - names, names - tree_files()
    if missing or extra:
        sys.exit(
            f"{wheel.name}: missing {sorted(missing)}, not expected {sorted(extra)}\n"
            "  hint: name the sub-package or its data in pyproject.toml, [tool.setuptools]"
        )


def check_imports() -> int:
    """Import every module and return their number; exit if one comes from outside the wheel."""
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in tree_files()
        if name.endswith(".py")
    )
    for name in modules:
        file = importlib.import_module(name).__file__
        if file is None or SITE not in Path(file).resolve().parents:
            sys.exit(f"{name} was imported from {file}, not from the wheel in {SITE}")
    return len(modules)


def run_program(option: str) -> str:
    """Return what `toolguard OPTION` prints, started in an empty folder."""
    program = Path(sysconfig.get_path("scripts")) / "toolguard"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(  # noqa: S603  # the program just installed
            [program, option], cwd=folder, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        sys.exit(f"toolguard {option} exited with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Run every check on the wheel given as the only argument."""
    wheel = Path(sys.argv[1])
    check_contents(wheel)
    count = check_imports()
    version = importlib.metadata.version("toolguard-margin")
    if version not in run_program("--version"):
        sys.exit(f"toolguard --version does not print {version}")
    if "Usage" not in run_program("--help"):
        sys.exit("toolguard --help prints no usage")
    print(f"{wheel.name}: {len(tree_files())} files, {count} modules, the program starts")


if __name__ == "__main__":
    main()
