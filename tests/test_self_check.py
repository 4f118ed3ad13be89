"""What the tiny forward at load proves, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import tiny_models
import torch
from torch import nn

from toolguard.adapters.blocks import resolve_blocks
from toolguard.adapters.self_check import check_finite_weights, self_check
from toolguard.guard.errors import ReadoutError, UnsupportedModel


def view_of(model, **changes):
    return dataclasses.replace(resolve_blocks(model), **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", tiny_models.CONFIGS)
def test_every_family_passes(family, dtype):
    """A sound model of each family passes, and the report states its facts."""
    check = self_check(resolve_blocks(tiny_models.tiny_model(family, layers=2, dtype=dtype)))
    assert (check.blocks, check.compared) == (2, 1)
    assert (check.hidden_size, check.vocab_size) == (32, 400)
    assert check.dtype == str(dtype).removeprefix("torch.")
    assert check.output_type == "Tensor"
    assert check.last_is_normed
    assert 0 < check.seconds < 10


def test_report_is_frozen(tiny_view):
    """The report is a value: it cannot be changed afterwards."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        self_check(tiny_view).blocks = 7


def test_one_block_is_enough():
    """A model of one block passes, with nothing to compare."""
    assert self_check(resolve_blocks(tiny_models.tiny_model(layers=1))).compared == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_broken_weights_are_named(value, dtype):
    """One NaN or infinity anywhere is found, even in a row that the tiny forward does not touch."""
    model = tiny_models.tiny_model(dtype=dtype)
    with torch.no_grad():
        model.model.embed_tokens.weight[-1, -1] = value
    with pytest.raises(ReadoutError, match=r"weight model\.embed_tokens\.weight") as caught:
        self_check(resolve_blocks(model))
    assert "float32" in caught.value.hint


def test_large_finite_weights_pass():
    """Finite weights whose sum leaves the range of float32 are not taken for infinite."""
    check_finite_weights([("big", nn.Parameter(torch.full((8,), 3e38)))])


def test_integer_and_unloaded_weights_are_left_out():
    """Quantised weights and weights without storage hold no NaN to find."""
    packed = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    check_finite_weights([("packed", packed), ("away", nn.Parameter(torch.ones(3, device="meta")))])


def test_overflow_in_the_forward_is_found():
    """Finite weights that overflow in the model's dtype are found in the forward."""
    model = tiny_models.tiny_model(dtype=torch.float16)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(6e4)
        model.model.layers[1].mlp.up_proj.weight.fill_(6e4)
    with pytest.raises(ReadoutError, match="the output of block 1 holds NaN or infinity"):
        self_check(resolve_blocks(model))


def test_nan_logits_are_found():
    """A head that yields NaN is found although all hidden states are sound."""
    model = tiny_models.tiny_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ReadoutError, match="the logits hold"):
        self_check(resolve_blocks(model), scan_weights=False)


def test_blocks_that_do_not_run_are_found(tiny_view):
    """Modules that the forward never calls are no blocks."""
    idle = tuple(nn.Linear(32, 32) for _ in range(3))
    with pytest.raises(UnsupportedModel, match="fired 0 times") as caught:
        self_check(dataclasses.replace(tiny_view, blocks=idle))
    assert "--layers-path" in caught.value.hint


def test_blocks_that_run_twice_are_found():
    """A block used at two depths cannot be tapped by its index."""
    model = tiny_models.tiny_model()
    model.model.layers[2] = model.model.layers[1]
    with pytest.raises(UnsupportedModel, match=r"block 1 at model\.layers fired 2 times"):
        self_check(view_of(model))


def test_modules_inside_the_blocks_are_found_by_their_values():
    """Modules with the right shape and count but another value are refused."""
    model = tiny_models.tiny_model()
    inner = tuple(layer.mlp for layer in model.model.layers)
    with pytest.raises(UnsupportedModel, match=r"differs from hidden_states\[1\]"):
        self_check(view_of(model, blocks=inner))


def test_modules_of_another_width_are_found():
    """An output that is not as wide as the residual stream is refused."""
    model = tiny_models.tiny_model()
    inner = tuple(layer.mlp.up_proj for layer in model.model.layers)
    with pytest.raises(UnsupportedModel, match=r"shape \(1, 6, 32\), found \(1, 6, 48\)"):
        self_check(view_of(model, blocks=inner))


def test_fewer_blocks_than_hidden_states_are_found():
    """A list that holds only some of the blocks is refused."""
    model = tiny_models.tiny_model()
    with pytest.raises(UnsupportedModel, match="returned 4 hidden states, expected 3"):
        self_check(view_of(model, blocks=tuple(model.model.layers[:2])))


def test_an_unembedding_of_another_vocabulary_is_found():
    """The unembedding must have one row for each logit."""
    model = tiny_models.tiny_model()
    with pytest.raises(UnsupportedModel, match=r"shape \(1, 6, 300\), found \(1, 6, 400\)"):
        self_check(view_of(model, unembedding=model.lm_head.weight[:300]))


def test_a_norm_that_is_not_the_final_one_is_reported():
    """The report says when the norm found does not lead to the last hidden state."""
    check = self_check(view_of(tiny_models.tiny_model(), final_norm=nn.Identity()))
    assert not check.last_is_normed


def test_a_failing_forward_is_a_typed_error():
    """A model that cannot run on input ids alone is refused in our words."""
    model = tiny_models.tiny_model()
    model.model.layers[0].self_attn.q_proj = nn.Linear(7, 7)
    with pytest.raises(UnsupportedModel, match="failed on a forward of 6 tokens"):
        self_check(resolve_blocks(model))


def test_nothing_is_left_on_the_model():
    """After a check, passed or failed, no hook of ours remains."""
    model = tiny_models.tiny_model()
    model(torch.tensor([[1]]), output_hidden_states=True)  # transformers' own hooks stay for good
    before = [len(module._forward_hooks) for module in model.modules()]
    self_check(resolve_blocks(model))
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(ReadoutError):
        self_check(resolve_blocks(model), scan_weights=False)
    assert [len(module._forward_hooks) for module in model.modules()] == before
