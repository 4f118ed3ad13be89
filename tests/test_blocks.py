"""Finding blocks in every family, and tapping them without leaving anything behind."""

from __future__ import annotations

import threading
from collections import namedtuple

import pytest
import tiny_models
import torch
from torch import nn
from transformers import BertConfig, BertModel, OPTConfig, OPTForCausalLM, Qwen3Model

from toolguard.adapters.blocks import (
    FAMILIES,
    ModelView,
    hidden_of,
    resolve_blocks,
    tap_blocks,
    with_hidden,
)
from toolguard.guard.errors import ConfigError, ReadoutError, ShapeError, UnsupportedModel

IDS = torch.tensor([[5, 6, 7, 8]])


def hook_counts(model):
    return {
        name: (
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            "forward" in vars(module),
        )
        for name, module in model.named_modules()
    }


def tiny_opt():
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return OPTForCausalLM(OPTConfig(vocab_size=64, word_embed_proj_dim=32, **sizes)).eval()


class TupleBlock(nn.Module):
    """Adds one and returns a tuple with the residual stream first, as blocks used to."""

    def forward(self, hidden):
        return hidden + 1, "cache"


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([TupleBlock(), TupleBlock()])

    def forward(self, hidden):
        caches = []
        for block in self.blocks:
            hidden, cache = block(hidden)
            caches.append(cache)
        return hidden, caches


def test_every_family_of_the_table_has_a_tiny_model():
    """A row of the table that no test builds would be a guess."""
    assert set(FAMILIES) == set(tiny_models.CONFIGS)


@pytest.mark.parametrize("family", tiny_models.CONFIGS)
def test_resolves_family(family):
    """Blocks, final norm and unembedding are found, and lead to the model's own logits."""
    model = tiny_models.tiny_model(family, layers=4)
    view = resolve_blocks(model)
    assert view.family == family
    assert len(view.blocks) == 4
    assert view.unembedding.shape == (400, view.hidden_size)
    kept = {}
    with torch.no_grad(), tap_blocks(view, [3], kept.__setitem__):
        logits = model(IDS).logits
        ours = view.final_norm(kept[3]) @ view.unembedding.T
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    torch.testing.assert_close(ours if cap is None else cap * torch.tanh(ours / cap), logits)


@pytest.mark.parametrize("family", tiny_models.CONFIGS)
def test_hook_reads_the_hidden_states(family):
    """Block i's tapped output is bit-equal to hidden_states[i + 1] for all but the last block."""
    model = tiny_models.tiny_model(family)
    kept = {}
    with torch.no_grad(), tap_blocks(resolve_blocks(model), range(3), kept.__setitem__):
        states = model(IDS, output_hidden_states=True).hidden_states
    for layer in range(2):
        assert torch.equal(kept[layer], states[layer + 1])
    assert not torch.equal(kept[2], states[3])


def test_unknown_architecture_names_the_option_and_what_there_is():
    """An architecture outside the table is refused with the option to set and the lists found."""
    with pytest.raises(UnsupportedModel) as caught:
        resolve_blocks(tiny_opt())
    assert "'opt'" in caught.value.message
    assert "--layers-path" in caught.value.hint
    assert "model.decoder.layers (2 x OPTDecoderLayer)" in caught.value.hint


def test_path_overrides_the_table():
    """An unknown architecture is readable through the path that the hint names."""
    view = resolve_blocks(tiny_opt(), path="model.decoder.layers")
    assert (len(view.blocks), view.family) == (2, "opt")
    assert view.final_norm is view.model.model.decoder.final_layer_norm


@pytest.mark.parametrize("path", ["model.layer", "model.norm", "model.layers.0.self_attn", "", "."])
def test_path_to_something_else_is_refused(path):
    """A path that does not lead to a list of modules is refused, whatever it leads to."""
    with pytest.raises(UnsupportedModel, match="expected a ModuleList") as caught:
        resolve_blocks(tiny_models.tiny_model(), path=path)
    assert "model.layers (3 x Qwen3DecoderLayer)" in caught.value.hint


def test_path_to_the_vision_tower_is_refused():
    """Of a multimodal model's lists only the one with the text model's length is taken."""
    model = tiny_models.tiny_model("gemma3")
    with pytest.raises(UnsupportedModel, match="num_hidden_layers=3"):
        resolve_blocks(model, path="model.vision_tower.encoder.layers")


def test_models_without_a_head_are_refused():
    """A backbone has no unembedding, so it chooses no tokens."""
    backbone = tiny_models.tiny_model().model
    assert isinstance(backbone, Qwen3Model)
    with pytest.raises(UnsupportedModel, match="no output embedding"):
        resolve_blocks(backbone, path="layers")


def test_modules_that_are_no_transformers_model_are_refused():
    """A plain module is refused with a typed error."""
    with pytest.raises(UnsupportedModel, match="no transformers config"):
        resolve_blocks(nn.Linear(2, 2))


def test_encoders_are_refused():
    """An encoder is not in the table."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    with pytest.raises(UnsupportedModel, match="bert"):
        resolve_blocks(BertModel(BertConfig(vocab_size=64, num_hidden_layers=2, **sizes)))


def test_returned_tensor_replaces_the_output():
    """What the callback returns goes on to the next block; None changes nothing."""
    model = tiny_models.tiny_model()
    view = resolve_blocks(model)
    with torch.no_grad():
        plain = model(IDS).logits
        with tap_blocks(view, [1], lambda _layer, _hidden: None):
            assert torch.equal(model(IDS).logits, plain)
        with tap_blocks(view, [1], lambda _layer, hidden: hidden * 2):
            assert not torch.equal(model(IDS).logits, plain)
        assert torch.equal(model(IDS).logits, plain)


def test_steering_equals_a_raw_hook():
    """A steered forward is bit-equal to one steered by a hook written by hand."""
    model = tiny_models.tiny_model("llama")
    view = resolve_blocks(model)
    delta = torch.randn(32, generator=torch.Generator().manual_seed(0))

    def steer(_layer, hidden):
        new = hidden.clone()
        new[:, -1] += delta
        return new

    handle = model.model.layers[1].register_forward_hook(lambda _m, _a, out: steer(1, out))
    with torch.no_grad():
        expected = model(IDS).logits
        handle.remove()
        with tap_blocks(view, [1], steer):
            assert torch.equal(model(IDS).logits, expected)


def test_tuple_outputs_keep_their_other_items():
    """A tuple goes on as the same kind of tuple with its first item replaced."""
    Pair = namedtuple("Pair", ["hidden", "cache"])  # noqa: PYI024 - as libraries write them
    old, new = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    assert torch.equal(hidden_of((old, "cache")), old)
    for output in ((old, "cache"), Pair(old, "cache")):
        replaced = with_hidden(output, new)
        assert type(replaced) is type(output)
        assert torch.equal(replaced[0], new)
        assert replaced[1] == "cache"
    assert torch.equal(with_hidden(old, new), new)


def test_tapping_blocks_that_return_tuples():
    """Blocks that return tuples are read and steered, and their other items arrive unchanged."""
    toy = Toy()
    parts = {"final_norm": nn.Identity(), "unembedding": torch.eye(3), "hidden_size": 3}
    view = ModelView(model=toy, blocks=tuple(toy.blocks), family="toy", path="blocks", **parts)
    with tap_blocks(view, [0], lambda _layer, hidden: hidden * 10):
        output, caches = toy(torch.zeros(1, 2, 3))
    assert torch.equal(output, torch.full((1, 2, 3), 11.0))
    assert caches == ["cache", "cache"]


@pytest.mark.parametrize("output", [None, (), [], "text", torch.zeros(2, 3), (None,)])
def test_outputs_without_a_residual_stream_are_refused(output):
    """Anything but (batch, positions, hidden) is a reading that cannot be computed."""
    with pytest.raises(ReadoutError, match="a block returned"):
        hidden_of(output)


def test_replacement_keeps_shape_dtype_and_device():
    """A replacement of another shape is refused, one of another dtype is cast."""
    old = torch.zeros(1, 2, 3, dtype=torch.bfloat16)
    assert with_hidden(old, torch.ones(1, 2, 3)).dtype == torch.bfloat16
    with pytest.raises(ShapeError, match=r"\(1, 2, 3\), found \(2, 3\)"):
        with_hidden(old, torch.ones(2, 3))


@pytest.mark.parametrize("where", ["callback", "body", "forward"])
def test_nothing_is_left_after_an_exception(where):
    """Hooks are gone whether the callback, the caller's code or the model raises."""
    model = tiny_models.tiny_model()
    view = resolve_blocks(model)
    before = hook_counts(model)
    bad = torch.tensor([[10_000]])

    def callback(_layer, _hidden):
        if where == "callback":
            raise RuntimeError("callback")

    with pytest.raises((RuntimeError, IndexError)), tap_blocks(view, range(3), callback):  # noqa: PT012
        model(bad if where == "forward" else IDS)
        raise RuntimeError("body")
    assert hook_counts(model) == before


def test_nothing_is_left_after_a_bad_layer():
    """A layer that is no block index is refused before any hook is set."""
    model = tiny_models.tiny_model()
    view = resolve_blocks(model)
    before = hook_counts(model)
    for layers in ([0, 3], [-1]):
        with pytest.raises(ConfigError, match="expected 0 to 2"), tap_blocks(view, layers, print):
            pass
    assert hook_counts(model) == before


def test_a_layer_listed_twice_is_tapped_once():
    """Listing a block twice does not steer it twice."""
    model = tiny_models.tiny_model()
    fired = []
    with torch.no_grad(), tap_blocks(resolve_blocks(model), [1, 1], lambda i, _h: fired.append(i)):
        model(IDS)
    assert fired == [1]


def test_another_threads_forward_is_not_seen():
    """A tap sees its own thread's forwards and does not change another thread's result."""
    model = tiny_models.tiny_model()
    with torch.no_grad():
        plain = model(IDS).logits
    results = []

    def other():
        with torch.no_grad():
            results.append(model(IDS).logits)

    fired = []
    with tap_blocks(resolve_blocks(model), [0, 2], lambda i, h: fired.append(i) or h * 2):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert fired == []
    assert torch.equal(results[0], plain)


def test_two_taps_nest():
    """Two open taps both see the block, and closing one leaves the other."""
    model = tiny_models.tiny_model()
    view = resolve_blocks(model)
    seen = []
    with torch.no_grad(), tap_blocks(view, [0], lambda _i, _h: seen.append("outer")):
        with tap_blocks(view, [0], lambda _i, _h: seen.append("inner")):
            model(IDS)
        model(IDS)
    assert seen == ["outer", "inner", "outer"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_read_and_steered_in_their_dtype(dtype):
    """A float32 replacement in a half-precision model is cast to the model's dtype."""
    model = tiny_models.tiny_model(dtype=dtype)
    kept = {}
    view = resolve_blocks(model)
    double = tap_blocks(view, [1], lambda _i, hidden: hidden.float() * 2)
    with torch.no_grad(), double, tap_blocks(view, [1, 2], kept.__setitem__):
        logits = model(IDS).logits
    assert kept[1].dtype == kept[2].dtype == logits.dtype == view.unembedding.dtype == dtype


def test_dispatched_models_are_read_like_plain_ones():
    """A model that accelerate has put on devices reads and steers as before."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    plain, model = tiny_models.tiny_model(), tiny_models.tiny_model()
    names = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    layers = {f"model.layers.{i}": "cpu" for i in range(3)}
    accelerate.dispatch_model(
        model, device_map={**dict.fromkeys(names, "cpu"), **layers}, force_hooks=True
    )
    assert hasattr(model.model.layers[0], "_hf_hook")
    kept = []
    for each in (plain, model):
        seen, view = {}, resolve_blocks(each)
        add = tap_blocks(view, [1], lambda _i, hidden: hidden + 1)
        with torch.no_grad(), add, tap_blocks(view, [1, 2], seen.__setitem__):
            logits = each(IDS).logits
        kept.append((seen[1], seen[2], logits))
    for ours, theirs in zip(*kept, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_split_over_two_devices_steers_on_the_blocks_own_device():
    """A CPU vector steers a block on the accelerator, in a model split between both."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = tiny_models.tiny_model()
    places = {"model.embed_tokens": "cuda:0", "model.rotary_emb": "cuda:0", "model.norm": "cpu"}
    layers = {f"model.layers.{i}": "cuda:0" if i < 2 else "cpu" for i in range(3)}
    model = accelerate.dispatch_model(
        model, device_map={**places, **layers, "lm_head": "cpu"}, main_device="cuda:0"
    )
    seen = {}
    view = resolve_blocks(model)
    double = tap_blocks(view, [1], lambda _i, hidden: hidden.cpu() * 2)
    with torch.no_grad(), double, tap_blocks(view, [1, 2], seen.__setitem__):
        model(IDS.cuda())
    assert (seen[1].device.type, seen[2].device.type) == ("cuda", "cpu")
