"""Who imports whom: read from the source, and for `guard` also seen in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("guard", "adapters", "calibration")
FOREIGN = ("transformers", "nnsight", "langchain", "langchain_core", "langgraph")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("toolguard", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {
    module_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))
}


def imported_names(node: ast.AST) -> Iterator[str]:
    """Give each module an import statement names; `from a import b` gives a.b where b is one."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in MODULES else node.module


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(module: str, *, at_import_only: bool = False) -> set[str]:
    """Return what a module imports: anywhere in it, or only what runs when it is imported."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(MODULES[module].read_text())]
    while waiting:
        node = waiting.pop()
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)
        if not (at_import_only and later):
            found.update(imported_names(node))
            waiting.extend(ast.iter_child_nodes(node))
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("guard", ("toolguard.adapters", "toolguard.calibration", *FOREIGN)),
        ("adapters", ("toolguard.calibration",)),
    ],
)
def test_imports_go_one_way(package: str, forbidden: tuple[str, ...]) -> None:
    """Guard imports neither of the others nor anything foreign; adapters not calibration."""
    wrong = {
        (module, name)
        for module in MODULES
        if within(module, f"toolguard.{package}")
        for name in imports_of(module)
        if any(within(name, other) for other in forbidden)
    }
    assert wrong == set()


def test_imports_have_no_cycle() -> None:
    """No module needs itself, by whatever way round, in order to be imported."""
    graph = {
        module: imports_of(module, at_import_only=True) & MODULES.keys() - {module}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_import_of_our_own_is_of_a_module_that_exists() -> None:
    """A name such as toolguard.guard.tool (for tools) is found even inside a function."""
    unknown = {
        (module, name)
        for module in MODULES
        for name in imports_of(module)
        if within(name, "toolguard") and name not in MODULES
    }
    assert unknown == set()


def test_nnsight_is_only_imported_where_it_is_used() -> None:
    """Importing nnsight changes the process (its except hook), so no module does at its top."""
    wrong = {
        module
        for module in MODULES
        for name in imports_of(module, at_import_only=True)
        if within(name, "nnsight")
    }
    assert wrong == set()


def test_importing_guard_loads_nothing_foreign() -> None:
    """All of toolguard.guard imports in a fresh interpreter without the libraries it must not."""
    modules = [module for module in MODULES if within(module, "toolguard.guard")]
    code = f"""
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
unwanted = {(*FOREIGN, "toolguard.adapters", "toolguard.calibration")!r}
sys.exit(", ".join(name for name in unwanted if name in sys.modules) or 0)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
