"""The independent reading through nnsight equals ours and leaves process and model as they were."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import tiny_models
import torch

from toolguard.adapters.blocks import resolve_blocks, tap_blocks
from toolguard.adapters.nnsight_oracle import read_blocks
from toolguard.guard.errors import ConfigError, UnsupportedModel

IDS = torch.tensor([5, 6, 7, 8, 9])


def hook_reading(model, ids, layers):
    kept = {}
    with torch.no_grad(), tap_blocks(resolve_blocks(model), layers, kept.__setitem__):
        model(ids[None])
    return torch.stack([kept[layer][0, -1] for layer in layers])


@pytest.mark.parametrize("family", tiny_models.CONFIGS)
def test_hooks_equal_nnsight(family, tiny_tokenizer):
    """The hook reading is bit-equal to the nnsight reading, block by block."""
    model = tiny_models.tiny_model(family)
    ours = hook_reading(model, IDS, range(3))
    assert torch.equal(read_blocks(model, tiny_tokenizer, IDS, range(3)), ours)


def test_rows_come_in_the_order_asked(tiny_qwen3, tiny_tokenizer):
    """Layers may be listed in any order and more than once."""
    rows = read_blocks(tiny_qwen3, tiny_tokenizer, IDS[None], [2, 0, 2])
    assert torch.equal(rows, hook_reading(tiny_qwen3, IDS, [2, 0, 2]))


def test_bfloat16_readings_are_equal(tiny_tokenizer):
    """In bfloat16 too both readings are bit-equal, and stay bfloat16."""
    model = tiny_models.tiny_model(dtype=torch.bfloat16)
    rows = read_blocks(model, tiny_tokenizer, IDS, [1])
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows, hook_reading(model, IDS, [1]))


def test_model_and_tokenizer_are_as_before():
    """No forward stays replaced, no hook stays set, and the tokenizer keeps its padding side."""
    model, tokenizer = tiny_models.tiny_model(), tiny_models.tiny_tokenizer()
    tokenizer.padding_side = "right"
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    read_blocks(model, tokenizer, IDS, [0])
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())
    assert tokenizer.padding_side == "right"


def test_model_is_as_before_after_a_failure(tiny_tokenizer):
    """A forward that fails inside the trace leaves the model as it was."""
    model = tiny_models.tiny_model()
    with pytest.raises(IndexError):
        read_blocks(model, tiny_tokenizer, torch.tensor([10_000]), [0])
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(read_blocks(model, tiny_tokenizer, IDS, [0]), hook_reading(model, IDS, [0]))


def test_threads_wait_for_each_other(tiny_tokenizer):
    """Readings of one model from several threads are all right, one after the other."""
    model = tiny_models.tiny_model()
    expected = hook_reading(model, IDS, [1])
    results = []

    def read():
        for _ in range(3):
            rows = read_blocks(model, tiny_tokenizer, IDS, [1])
            results.append(torch.equal(rows, expected))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 12


def test_unlisted_architectures_need_their_path(tiny_tokenizer):
    """The oracle knows the architectures that the hooks know."""
    model = tiny_models.tiny_model()
    model.config.model_type = "unheard-of"
    with pytest.raises(UnsupportedModel):
        read_blocks(model, tiny_tokenizer, IDS, [0])
    rows = read_blocks(model, tiny_tokenizer, IDS, [0], layers_path="model.layers")
    assert rows.shape == (1, 32)


@pytest.mark.parametrize("layers", [[], [3], [-1]])
def test_layers_that_are_no_blocks_are_refused(layers, tiny_qwen3, tiny_tokenizer):
    """Layers are block indices, at least one."""
    with pytest.raises(ConfigError, match="not block indices below 3"):
        read_blocks(tiny_qwen3, tiny_tokenizer, IDS, layers)


def test_several_rows_are_refused(tiny_qwen3, tiny_tokenizer):
    """The last position of a padded batch would not be the last token."""
    with pytest.raises(ConfigError, match="one row at a time, found 2"):
        read_blocks(tiny_qwen3, tiny_tokenizer, torch.stack([IDS, IDS]), [0])


def test_the_process_is_as_before():
    """Importing nnsight through the oracle adds no `save` to objects and keeps the except hook."""
    code = """
import os, sys
before = (sys.excepthook, dict(os.environ))
from toolguard.adapters import nnsight_oracle
assert "nnsight" not in sys.modules
nnsight_oracle.import_nnsight()
assert "nnsight" in sys.modules
assert not hasattr(3, "save")
assert (sys.excepthook, dict(os.environ)) == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
