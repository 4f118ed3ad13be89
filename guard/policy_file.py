"""Reading a policy's YAML: a mapping, without code and without a key given twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from toolguard.guard.errors import ConfigError


class _UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML and refuses a key given twice, of which the first would silently not count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - the signature of the base
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_policy_file(path: Path) -> Mapping[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: if the file cannot be read or holds something else.
    """
    try:
        text = path.read_text("utf-8")
        content = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(
            f"cannot read the policy {path}: {error.strerror}", path=str(path)
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the policy {path} is not YAML: {error}", path=str(path)) from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"the policy {path} must be a mapping, found {type(content).__name__}", path=str(path)
        )
    return content
