"""Block outputs read through nnsight: the independent answer that hook readings are compared with.

For tests and benchmarks only. nnsight replaces every module's `forward`, is not safe beside another
thread's forward, and by default adds `.save` to every object of the process; so it is imported when
first used, with that addition off, and the model is put back as it was after each reading.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from toolguard.adapters.blocks import ModelView, hidden_of, resolve_blocks
from toolguard.guard.errors import ConfigError

# Attributes nnsight leaves on each module it wraps (0.8.1).
_LEFTOVERS = ("forward", "__nnsight__")

_registry_lock = threading.Lock()
_model_locks: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()


def read_blocks(
    model: nn.Module,
    tokenizer: Any,
    input_ids: Tensor,
    layers: Sequence[int],
    *,
    layers_path: str | None = None,
) -> Tensor:
    """Return the listed blocks' outputs at the last position, read through an nnsight trace.

    Nothing else may run the model meanwhile; readings of one model wait for each other.

    Args:
        model: a model that `resolve_blocks` knows, or one for which `layers_path` is given.
        tokenizer: its tokenizer; nnsight gets a copy, since it changes the padding side.
        input_ids: (positions,) or (1, positions) int64, without padding.
        layers: block indices, at least one, in any order.
        layers_path: dotted path to the blocks, for a model that is not in the table.

    Returns:
        (layers, hidden), in the order of `layers`, dtype and device of the residual stream.

    Raises:
        ConfigError: if nnsight is missing, a layer is not a block index, or there are several rows.
    """
    view = resolve_blocks(model, path=layers_path)
    rows = input_ids if input_ids.ndim == 2 else input_ids[None]
    if rows.shape[0] != 1:
        raise ConfigError(f"the oracle reads one row at a time, found {rows.shape[0]}")
    wanted = sorted(set(layers))
    if not wanted or wanted[0] < 0 or wanted[-1] >= len(view.blocks):
        raise ConfigError(f"layers {list(layers)} are not block indices below {len(view.blocks)}")
    nnsight = import_nnsight()
    with _lock_of(model), _unchanged(model), torch.no_grad():
        outputs = _trace(nnsight, view, copy.deepcopy(tokenizer), rows, wanted)
    rows_of = {
        layer: hidden_of(output)[0, -1] for layer, output in zip(wanted, outputs, strict=True)
    }
    return torch.stack([rows_of[layer] for layer in layers])  # (layers, hidden)


def _trace(
    nnsight: ModuleType, view: ModelView, tokenizer: Any, rows: Tensor, wanted: Sequence[int]
) -> list[Any]:
    wrapped = nnsight.TransformersModel(view.model, tokenizer=tokenizer, task="text-generation")
    blocks = attrgetter(view.path)(wrapped)
    # nnsight runs the body of this block as its own program: it needs the source on disk, reads in
    # forward order, and gives back only what went through save.
    with wrapped.trace(rows):
        outputs = nnsight.save([])
        for layer in wanted:
            outputs.append(blocks[layer].output)
    return cast("list[Any]", outputs)


def _lock_of(model: nn.Module) -> threading.Lock:
    with _registry_lock:
        return _model_locks.setdefault(model, threading.Lock())


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put back what nnsight replaces on the model's modules."""
    before = [
        (module, {name: vars(module)[name] for name in _LEFTOVERS if name in vars(module)})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, kept in before:
            for name in _LEFTOVERS:
                vars(module).pop(name, None)
            vars(module).update(kept)


def import_nnsight() -> ModuleType:
    """Return nnsight, imported so that it leaves the process as it was.

    Raises:
        ConfigError: if it is missing.
    """
    loaded = sys.modules.get("nnsight")
    if loaded is not None:
        return loaded
    hook = sys.excepthook
    try:
        with _quiet_settings(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its dependencies' deprecations are not the caller's
            import nnsight
    except ImportError as error:
        raise ConfigError(
            f"nnsight cannot be imported: {error}", hint="pip install 'nnsight>=0.8.1,<0.9'"
        ) from error
    finally:
        sys.excepthook = hook
    return cast("ModuleType", nnsight)


@contextmanager
def _quiet_settings() -> Iterator[None]:
    """Point nnsight at settings that leave `object` alone, unless the user has named a file."""
    variable = "NNSIGHT_CONFIG"
    if variable in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "nnsight.yaml"
        settings.write_text("APP:\n  PYMOUNT: false\n")
        os.environ[variable] = str(settings)
        try:
            yield
        finally:
            del os.environ[variable]
