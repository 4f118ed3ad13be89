"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from toolguard.calibration.command_output import unwritable

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
        "--json",
        "json_path",
        metavar="PATH",
        callback=_place_for_json,
        help="Write the result as JSON; - is stdout.",
    )(function)


def _place_for_json(
    _context: click.Context, _parameter: click.Parameter, path: str | None
) -> str | None:
    """Return the path, if a file can lie there: to learn otherwise after an hour is too late."""
    if path and path != "-" and not Path(path).parent.is_dir():
        raise unwritable(path, f"{Path(path).parent} is no folder")
    return path
