"""The one way in which commands show progress and results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click
from tqdm import tqdm

from toolguard.guard.errors import ConfigError


def write_json(value: Mapping[str, Any], path: str) -> None:
    """Write `value` as indented JSON to a file, or to stdout if `path` is "-".

    JSON knows neither NaN nor infinity: a number that could not be computed becomes null.

    Raises:
        ConfigError: if the file cannot be written.
    """
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    if path == "-":
        click.echo(text)
        return
    try:
        Path(path).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise unwritable(path, str(error.strerror)) from error


def unwritable(path: str, why: str) -> ConfigError:
    """Return the error of a --json that cannot be written."""
    return ConfigError(
        f"cannot write {path}: {why}", hint="pass --json a file in a folder that exists"
    )


def progress_bar(what: str, unit: str, total: int | None = None) -> tqdm[NoReturn]:
    """Return a bar on stderr that is gone when it is done; where stderr is no terminal, none."""
    return tqdm(desc=what, unit=unit, total=total, leave=False, disable=None)


def show_result(value: Mapping[str, Any], text: str, path: str | None) -> None:
    """Show a result: the text, and JSON where it was asked for.

    Args:
        value: for the JSON file, if there is one.
        text: for people; on stderr where stdout is taken by the JSON.
        path: of --json.

    Raises:
        ConfigError: if the file cannot be written.
    """
    click.echo(text, err=path == "-")
    if path:
        write_json(value, path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
