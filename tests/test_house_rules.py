"""House rules that no linter knows: cheap checks on the source of the three packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("guard", "adapters", "calibration")
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "core", "manager", "common", "misc"}
BROAD = {"Exception", "BaseException"}
MAX_FUNCTION_LINES = 60

SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}
TESTS = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
}


def found(kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> Iterator[tuple[str, ast.AST]]:
    for name, tree in TREES.items():
        yield from ((name, node) for node in ast.walk(tree) if isinstance(node, kind))


def at(name: str, node: ast.AST) -> str:
    return f"{name}:{node.lineno}"


def is_broad(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    return any(isinstance(n, ast.Name) and n.id in BROAD for n in ast.walk(handler.type))


def raises_again(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def says_why(name: str, node: ast.AST) -> bool:
    _, _, reason = SOURCES[name].splitlines()[node.lineno - 1].partition("noqa: BLE001")
    return len(reason.strip(" #-:")) > 10


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count from the first statement after the docstring to the last line."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def called_name(call: ast.Call) -> str:
    return ast.unparse(call.func)


def test_no_assert() -> None:
    """An assert vanishes under -O; what must hold raises one of our errors."""
    assert [at(name, node) for name, node in found(ast.Assert)] == []


def test_broad_handlers_stand_in_guard_only_and_say_why() -> None:
    """Only the guard turns any failure into a closed verdict; elsewhere they raise again."""
    wrong = [
        at(name, node)
        for name, node in found(ast.ExceptHandler)
        if is_broad(node)
        and not raises_again(node)
        and not (name.startswith("guard/") and says_why(name, node))
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ["guard", "adapters"])
def test_the_runtime_does_not_print(folder: str) -> None:
    """What runs inside somebody's agent leaves their standard output alone."""
    wrong = [
        at(name, node)
        for name, node in found(ast.Call)
        if name.startswith(f"{folder}/") and called_name(node) in {"print", "sys.stdout.write"}
    ]
    assert wrong == []


def test_profiles_are_never_pickled() -> None:
    """Loading must not run code: neither guard nor adapters know pickle, and no load trusts one."""
    wrong = [
        at(name, node)
        for name, node in found((ast.Import, ast.ImportFrom))
        if {"pickle", "cloudpickle", "joblib", "dill"}
        & {getattr(node, "module", None), *(alias.name for alias in node.names)}
    ]
    wrong += [
        at(name, node)
        for name, node in found(ast.Call)
        if called_name(node) == "torch.load"
        and not any(
            keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True"
            for keyword in node.keywords
        )
    ]
    assert wrong == []


def test_file_names_say_what_is_inside() -> None:
    """A file named utils collects whatever has no other place."""
    assert [name for name in SOURCES if Path(name).stem in VAGUE_NAMES] == []


def test_functions_fit_on_a_screen() -> None:
    """No function is longer than the limit, its docstring not counted."""
    long = [
        f"{at(name, node)} {node.name} has {code_lines(node)} lines"
        for name, node in found((ast.FunctionDef, ast.AsyncFunctionDef))
        if code_lines(node) > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_every_test_says_the_behaviour() -> None:
    """Each test opens with one sentence that a reader can hold it to."""
    silent = [
        f"{at(name, node)} {node.name}"
        for name, tree in TESTS.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not (ast.get_docstring(node) or "").endswith((".", "?", "!"))
    ]
    assert silent == []
