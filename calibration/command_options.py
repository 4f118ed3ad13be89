"""Options that several commands share, and the one way they show progress and results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from tqdm import tqdm

from toolguard.guard.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])

_RECORDS = "Records: a .jsonl file, or a folder with records.jsonl and menus.json; may be repeated."
_MODEL_OPTIONS = (
    click.option(
        "--model",
        required=True,
        metavar="M",
        help='Folder of a checkpoint, hub id owner/name, or "reference".',
    ),
    click.option("--revision", help="Branch, tag or commit of a hub checkpoint."),
    click.option(
        "--format",
        "wire_format",
        metavar="F",
        help="Wire format of tool calls; default: detected from the chat template.",
    ),
    click.option(
        "--layers-path",
        metavar="P",
        help="Dotted path to the decoder blocks, for an architecture that is not in the table.",
    ),
    click.option("--device", help="cpu, cuda, cuda:N or auto; default: CUDA where there is any."),
    click.option(
        "--dtype",
        help="float32, bfloat16, float16 or auto; default: float32 on the CPU, else auto.",
    ),
)


def model_options(function: Function) -> Function:
    """Add --model, --revision, --format, --layers-path, --device and --dtype.

    The function gets them as model, revision, wire_format, layers_path, device and dtype.
    """
    for option in reversed(_MODEL_OPTIONS):
        function = option(function)
    return function


def profile_option(function: Function) -> Function:
    """Add --profile PATH, required; the function gets it as folder."""
    return click.option(
        "--profile",
        "folder",
        required=True,
        type=click.Path(path_type=Path),
        help="Profile folder.",
    )(function)


def data_option(words: str = _RECORDS) -> Callable[[Function], Function]:
    """Return what adds --data PATH, required and repeatable; `words` are its help."""
    return click.option(
        "--data", required=True, multiple=True, type=click.Path(path_type=Path), help=words
    )


def limit_option(function: Function) -> Function:
    """Add --limit N; the function gets it as limit, None if it was not given."""
    return click.option(
        "--limit",
        type=click.IntRange(min=1),
        help="Use N records of each kind of data, drawn by the hash of id and seed.",
    )(function)


def batch_tokens_option(default: int) -> Callable[[Function], Function]:
    """Return what adds --batch-tokens; the function gets it as batch_tokens."""
    return click.option(
        "--batch-tokens",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Most tokens in one forward.",
    )


def json_option(function: Function) -> Function:
    """Add --json PATH; the function gets it as json_path, None if it was not given."""
    return click.option(
        "--json", "json_path", metavar="PATH", help="Write the result as JSON; - is stdout."
    )(function)


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
        raise ConfigError(
            f"cannot write {path}: {error.strerror}",
            hint="pass --json a file in a folder that exists",
        ) from error


def progress_bar(what: str, unit: str, total: int | None = None) -> tqdm[NoReturn]:
    """Return a bar on stderr that is gone when it is done; where stderr is no terminal, none."""
    return tqdm(desc=what, unit=unit, total=total, leave=False, disable=None)


def show_result(value: Mapping[str, Any], text: str, path: str | None) -> None:
    """Show a result: JSON where it was asked for, and the text.

    Args:
        value: for the JSON file, if there is one.
        text: for people; on stderr where stdout is taken by the JSON.
        path: of --json.

    Raises:
        ConfigError: if the file cannot be written.
    """
    if path:
        write_json(value, path)
    click.echo(text, err=path == "-")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
