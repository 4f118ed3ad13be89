"""Loading checkpoints from disk, refusing broken ones, and recognising them again."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import tiny_models
import torch

from toolguard.adapters.fingerprint import fingerprint_of, template_hash_of, tokenizer_hash_of
from toolguard.adapters.loading import load_model, wrap_model
from toolguard.guard.errors import ConfigError, ReadoutError, UnsupportedModel


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny checkpoint that the test may break."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    # No test reaches a hub: refused connections look like a machine without a network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_loads_a_folder(tiny_folder):
    """A saved checkpoint loads in evaluation mode with view, dtype and identity."""
    loaded = load_model(str(tiny_folder), device="cpu")
    assert not loaded.model.training
    assert loaded.view.path == "model.layers"
    assert loaded.dtype == "float32"
    assert loaded.name == str(tiny_folder)
    assert loaded.revision == ""
    assert loaded.device == torch.device("cpu")
    assert {len(loaded.fingerprint), len(loaded.tokenizer_hash), len(loaded.template_hash)} == {64}


def test_loaded_weights_are_the_saved_ones(tiny_folder):
    """Loading gives the very weights, so the fingerprint equals that of the model in memory."""
    saved = tiny_models.tiny_model("qwen3", vocab_size=len(tiny_models.tiny_tokenizer()))
    assert load_model(str(tiny_folder)).fingerprint == fingerprint_of(saved)


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_other_families_load_from_disk(family, tmp_path):
    """A multimodal wrapper and a GPT-2 load from disk like any other, without missing tensors."""
    loaded = load_model(str(tiny_models.save_tiny(tmp_path, family)))
    assert loaded.view.family == family


def test_user_folder_is_expanded(tiny_folder, monkeypatch):
    """A path that begins with ~ is a folder in the user's home."""
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    assert load_model(f"~/{tiny_folder.name}").dtype == "float32"


@pytest.mark.parametrize(
    ("dtype", "stored", "expected"),
    [
        (None, torch.bfloat16, "float32"),
        ("auto", torch.bfloat16, "bfloat16"),
        ("bfloat16", torch.float32, "bfloat16"),
        ("float16", torch.float32, "float16"),
    ],
)
def test_dtype(dtype, stored, expected, tmp_path):
    """On the CPU float32 is the default, auto keeps the stored dtype, a name is obeyed."""
    folder = tiny_models.save_tiny(tmp_path, dtype=stored)
    assert load_model(str(folder), device="cpu", dtype=dtype).dtype == expected


def test_device_auto(tiny_folder):
    """Device auto loads through accelerate and reads the same weights."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    loaded = load_model(str(tiny_folder), device="auto", dtype="float32")
    assert loaded.fingerprint == load_model(str(tiny_folder), device="cpu").fingerprint


@pytest.mark.parametrize("device", ["tpu9000", "meta", "cuda:99", ""])
def test_bad_device(device, tiny_folder):
    """A device that is not there is refused before anything is loaded."""
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        load_model(str(tiny_folder), device=device)
    assert "cpu" in caught.value.hint


def test_bad_dtype(tiny_folder):
    """A dtype that is not in the list is refused, and the hint gives the list."""
    with pytest.raises(ConfigError, match="unknown dtype 'int4'") as caught:
        load_model(str(tiny_folder), dtype="int4")
    assert "bfloat16" in caught.value.hint


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "a/b/c", "~/nowhere"])
def test_missing_folder(name):
    """A path that leads nowhere is called a missing folder and not looked up on a hub."""
    with pytest.raises(ConfigError, match="there is no folder"):
        load_model(name)


def test_file_instead_of_folder(tiny_folder):
    """A path to a file says that the folder is wanted."""
    with pytest.raises(ConfigError, match="is a file"):
        load_model(str(tiny_folder / "config.json"))


@pytest.mark.parametrize("name", ["acme/no-such-model", "acme/not a name", "refrence"])
def test_hub_id_that_cannot_be_had(name):
    """A hub id that is not cached and cannot be fetched ends quickly in a hint for offline use."""
    started = time.perf_counter()
    with pytest.raises(ConfigError, match="could not be downloaded") as caught:
        load_model(name)
    assert "offline" in caught.value.hint
    assert time.perf_counter() - started < 5


def test_hub_id_in_the_cache_loads_offline(tiny_folder, tmp_path, monkeypatch):
    """A cached snapshot is used without a network, and its commit is the revision."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit, repo = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--acme--tiny"
    shutil.copytree(tiny_folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    for revision in (None, commit):
        loaded = load_model("acme/tiny", revision=revision)
        assert (loaded.name, loaded.revision) == ("acme/tiny", commit)


def test_hub_cache_without_weights_is_not_taken(tiny_folder, tmp_path, monkeypatch):
    """A cache that holds the tokenizer alone is not taken for the model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--acme--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_folder, snapshot)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ConfigError):
        load_model("acme/tiny", revision="0" * 40)


def test_reference_agent():
    """The name reference loads the bundled agent, or says in a typed error how to make it."""
    try:
        loaded = load_model("reference")
    except ConfigError as error:
        assert "train agent" in error.hint  # noqa: PT017 - either outcome is right
    else:
        assert (loaded.name, loaded.view.family) == ("reference", "qwen3")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "holds no config.json"),
        ("model.safetensors", "holds no safetensors weights"),
        ("tokenizer.json", "holds no tokenizer"),
    ],
)
def test_missing_file(file, message, folder):
    """A folder that lacks a part says which, before any library looks for it elsewhere."""
    (folder / file).unlink()
    with pytest.raises(ConfigError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff" * 64])
def test_corrupt_file(file, content, folder):
    """A damaged file is a typed error that names the folder."""
    (folder / file).write_bytes(content)
    with pytest.raises((ConfigError, UnsupportedModel)) as caught:
        load_model(str(folder))
    assert str(folder) in caught.value.message
    assert caught.value.hint


def test_truncated_weights(folder):
    """Weights cut short, as by a broken download, are refused."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(folder))


def test_config_of_another_model(folder):
    """A config with other sizes than the weights' is refused."""
    edit_config(folder, hidden_size=64)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(folder))


def test_incomplete_weights(folder):
    """Tensors that the checkpoint lacks are not silently filled with random numbers."""
    edit_config(folder, num_hidden_layers=4, layer_types=["full_attention"] * 4)
    with pytest.raises(UnsupportedModel, match=r"lack 11 tensors, the first is model\.layers\.3"):
        load_model(str(folder))


def test_unknown_model_type(folder):
    """An architecture that transformers does not know is a typed error."""
    edit_config(folder, model_type="unheard-of")
    with pytest.raises(ConfigError, match="unheard-of"):
        load_model(str(folder))


def test_nan_weights(tmp_path, tiny_tokenizer):
    """A checkpoint with NaN weights is refused at load."""
    model = tiny_models.tiny_model("qwen3", vocab_size=len(tiny_tokenizer))
    model.model.norm.weight.data[3] = float("nan")
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ReadoutError, match=r"model\.norm\.weight holds NaN"):
        load_model(str(tmp_path))


def test_layers_path_is_passed_on(tiny_folder):
    """layers_path overrides the table, and a wrong one is refused."""
    assert load_model(str(tiny_folder), layers_path="model.layers").view.path == "model.layers"
    with pytest.raises(UnsupportedModel, match="expected a ModuleList"):
        load_model(str(tiny_folder), layers_path="model.blocks")


def test_training_mode_is_refused(tiny_tokenizer):
    """A model in training mode would read differently each time."""
    with pytest.raises(ConfigError, match="training mode"):
        wrap_model(tiny_models.tiny_model().train(), tiny_tokenizer)


def test_fingerprint_is_the_models_own():
    """Equal models have equal fingerprints; other seeds, sizes and families differ."""
    prints = [
        fingerprint_of(tiny_models.tiny_model(family, seed=seed, layers=layers))
        for family, seed, layers in [
            ("qwen3", 0, 3),
            ("qwen3", 1, 3),
            ("qwen3", 0, 2),
            ("llama", 0, 3),
        ]
    ]
    assert len(set(prints)) == 4
    assert fingerprint_of(tiny_models.tiny_model("qwen3")) == prints[0]


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_fingerprint_covers_every_parameter(name):
    """A change to any one parameter changes the fingerprint."""
    model = tiny_models.tiny_model()
    before = fingerprint_of(model)
    model.get_parameter(name).data.mul_(1.01)
    assert fingerprint_of(model) != before


def test_fingerprint_does_not_depend_on_the_loading_dtype():
    """bfloat16 weights have one fingerprint whether they are held as bfloat16 or float32."""
    model = tiny_models.tiny_model(dtype=torch.bfloat16)
    before = fingerprint_of(model)
    assert fingerprint_of(model.float()) == before


def test_fingerprint_knows_the_config():
    """Equal weights that are computed with differently are another model."""
    model = tiny_models.tiny_model()
    before = fingerprint_of(model)
    model.config.rms_norm_eps = 1e-3
    assert fingerprint_of(model) != before


def test_fingerprint_needs_the_weights():
    """A model whose weights are elsewhere has no fingerprint."""
    with pytest.raises(UnsupportedModel, match="not in memory"):
        fingerprint_of(tiny_models.tiny_model().to("meta"))


def test_fingerprint_is_fast():
    """Only a sample of each parameter is read, so size hardly matters."""
    model = tiny_models.tiny_model(layers=4, vocab_size=200_000)
    started = time.perf_counter()
    fingerprint_of(model)
    assert time.perf_counter() - started < 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_fingerprint_does_not_depend_on_the_device(tiny_folder):
    """The same checkpoint has the same fingerprint on the accelerator."""
    there = load_model(str(tiny_folder), device="cuda", dtype="float32")
    assert there.fingerprint == load_model(str(tiny_folder), device="cpu").fingerprint


def test_tokenizer_hash():
    """The hash is that of the rules: calls that pad do not change it, a new token does."""
    tokenizer = tiny_models.tiny_tokenizer()
    before = tokenizer_hash_of(tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert tokenizer_hash_of(tokenizer) == before == tokenizer_hash_of(tiny_models.tiny_tokenizer())
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_hash_of(tokenizer) != before


def test_tokenizer_hash_survives_saving(tiny_loaded, tiny_folder):
    """A tokenizer that was saved and loaded has the hash it had."""
    assert load_model(str(tiny_folder)).tokenizer_hash == tiny_loaded.tokenizer_hash


def test_template_hash():
    """Any change to the template shows; no template is an empty hash."""
    tokenizer = tiny_models.tiny_tokenizer()
    before = template_hash_of(tokenizer)
    tokenizer.chat_template += " "
    assert template_hash_of(tokenizer) != before
    tokenizer.chat_template = None
    assert template_hash_of(tokenizer) == ""
