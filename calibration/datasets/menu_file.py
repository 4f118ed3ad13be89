"""Reading a menu of tools from a JSON file that a user wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolguard.calibration.datasets.dataset import parse_json
from toolguard.guard.errors import ConfigError, DatasetError
from toolguard.guard.tools import Menu


def read_json_file(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        ConfigError: if the file cannot be read.
        DatasetError: if it is not JSON.
    """
    try:
        return parse_json(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON: {error}") from error


def read_menu(path: Path) -> Menu:
    """Return the menu in a JSON file: a list of tools, or an object with one under `tools`.

    Raises:
        ConfigError: if the file cannot be read, or a tool in it cannot be used.
        DatasetError: if it holds no list of tools.
    """
    content = read_json_file(path)
    tools = content.get("tools") if isinstance(content, dict) else content
    if not isinstance(tools, list):
        raise DatasetError(
            f"{path} holds no list of tools", hint='write [{"name": ..., "parameters": ...}, ...]'
        )
    return Menu.of(tools)
