"""Loading a model with its tokenizer from a folder, a hub id, or the bundled reference agent.

Whatever is asked for becomes a local folder first, so there is one way of loading and one set of
errors. Only safetensors weights are read, and no code that comes with a checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from toolguard.adapters.blocks import ModelView, resolve_blocks
from toolguard.adapters.fingerprint import fingerprint_of, template_hash_of, tokenizer_hash_of
from toolguard.adapters.self_check import self_check
from toolguard.guard.errors import ConfigError, UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REFERENCE = "reference"

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "vocab.txt", "merges.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that passed its self-check, with its tokenizer and identity.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer, unchanged.
        view: where blocks, final norm and unembedding are.
        name: what the user asked for: a hub id, a path, or "reference".
        revision: commit of a hub checkpoint, or empty.
        fingerprint: see `fingerprint_of`.
        dtype: dtype of the unembedding, for example "bfloat16".
        template_hash: see `template_hash_of`.
        tokenizer_hash: see `tokenizer_hash_of`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    view: ModelView
    name: str
    revision: str
    fingerprint: str
    dtype: str
    template_hash: str
    tokenizer_hash: str

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the input embedding."""
        return cast("torch.device", cast("Any", self.model).get_input_embeddings().weight.device)


def load_model(
    name_or_path: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    layers_path: str | None = None,
) -> LoadedModel:
    """Return a model and its tokenizer from a folder, a hub id, or the bundled reference agent.

    Args:
        name_or_path: "reference", a folder with a checkpoint, or a hub id "owner/name"; a hub
            checkpoint that is in the local cache is used without asking the hub.
        device: "cpu", "cuda", "cuda:1"; "auto" spreads it over what there is, which needs
            accelerate. None takes CUDA where there is any, else the CPU.
        dtype: "float32", "bfloat16", "float16", or "auto" for the checkpoint's own. None is
            float32 on the CPU, where bfloat16 is slow and rounds margins, else "auto".
        revision: branch, tag or commit of a hub checkpoint.
        layers_path: dotted path to the decoder blocks; overrides the table of families.

    Raises:
        ConfigError: if nothing can be loaded under that name, device or dtype.
        UnsupportedModel: if the checkpoint is incomplete or no model the guard can read.
        ReadoutError: if weights or logits are NaN or infinite.
    """
    target = _device(device)
    chosen = _dtype(dtype, target)
    folder, commit = _locate(name_or_path, revision)
    _check_folder(folder)
    return wrap_model(
        _load_weights(folder, target, chosen),
        _load_tokenizer(folder),
        name=name_or_path,
        revision=commit,
        layers_path=layers_path,
    )


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "in-memory",
    revision: str = "",
    layers_path: str | None = None,
) -> LoadedModel:
    """Return a model that is in memory already as `load_model` would, after the same self-check.

    Raises:
        ConfigError: if the model is in training mode.
        UnsupportedModel: if the guard cannot read the model; see `resolve_blocks`, `self_check`.
        ReadoutError: if weights or logits are NaN or infinite.
    """
    if model.training:
        raise ConfigError(
            "the model is in training mode, where dropout makes readings random",
            hint="call model.eval() first",
        )
    view = resolve_blocks(model, path=layers_path)
    self_check(view)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        view=view,
        name=name,
        revision=revision,
        fingerprint=fingerprint_of(model),
        dtype=str(view.unembedding.dtype).removeprefix("torch."),
        template_hash=template_hash_of(tokenizer),
        tokenizer_hash=tokenizer_hash_of(tokenizer),
    )


def _locate(name_or_path: str, revision: str | None) -> tuple[Path, str]:
    """Return the folder of a checkpoint and, for one of a hub, its commit."""
    if name_or_path == REFERENCE:
        return reference_folder(), ""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder, ""
    if folder.exists():
        raise ConfigError(
            f"{name_or_path} is a file, expected a folder with a checkpoint",
            hint="pass the folder that holds config.json",
        )
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise ConfigError(
            f"there is no folder {name_or_path}",
            hint='pass a folder with a checkpoint, a hub id owner/name, or "reference"',
        )
    return _from_hub(name_or_path, revision)


def reference_folder() -> Path:
    """Return the folder of the bundled agent's checkpoint.

    Raises:
        ConfigError: if this installation has none.
    """
    folder = Path(str(files("toolguard.adapters"))) / REFERENCE
    if not (folder / "config.json").is_file():
        raise ConfigError(
            "this installation has no bundled reference agent",
            hint="make one with `toolguard train agent`, or pass a folder or hub id",
        )
    return folder


def _from_hub(repo: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(_HUB_FILES)}
    try:
        folder = Path(snapshot_download(repo, local_files_only=True, **wanted))
        _check_folder(folder)  # the cache may hold a tokenizer alone
    except (OSError, ValueError, ConfigError):
        folder = _download(repo, wanted)
    return folder, folder.name  # a snapshot's folder is named by its commit


def _download(repo: str, wanted: Mapping[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, **wanted))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{repo!r} is neither a folder nor in the local cache, and could not be downloaded: "
            f"{_first_line(error)}",
            hint="check the name and the connection; offline, pass the folder of a saved model",
            model=repo,
        ) from error


def _check_folder(folder: Path) -> None:
    """Say what a folder lacks, in words that name it."""
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} holds no config.json",
            hint="pass the folder a model was saved to with save_pretrained",
        )
    if next(folder.glob("*.safetensors"), None) is None:
        raise ConfigError(
            f"{folder} holds no safetensors weights",
            hint="save the model with save_pretrained; pickled weights are not read",
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(
            f"{folder} holds no tokenizer",
            hint="save it beside the model: tokenizer.save_pretrained(folder)",
        )


def _device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "auto":
        return device
    try:
        kind = torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError) as error:  # torch asserts when built without CUDA
        raise _device_error(device, _first_line(error)) from error
    if kind == "meta":
        raise _device_error(device, "it holds no values")
    return device


def _device_error(device: str, reason: str) -> ConfigError:
    return ConfigError(
        f"device {device!r} cannot be used: {reason}",
        hint="one of: cpu, cuda, cuda:N, auto",
        device=device,
    )


def _dtype(dtype: str | None, device: str) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if device.startswith("cpu") else "auto"
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(
            f"unknown dtype {dtype!r}", hint=f"one of: auto, {', '.join(DTYPES)}", dtype=dtype
        )
    return DTYPES.get(dtype, dtype)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except _load_failures() as error:
        raise ConfigError(
            f"the tokenizer in {folder} cannot be loaded: {_first_line(error)}",
            hint="save it again with tokenizer.save_pretrained(folder)",
        ) from error
    return cast("PreTrainedTokenizerBase", tokenizer)


def _load_weights(folder: Path, device: str, dtype: torch.dtype | str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    placement = {"device_map": "auto"} if device == "auto" else {}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **placement,
        )
        model, info = loaded
        placed = model if placement else model.to(device)
    except _load_failures() as error:
        raise ConfigError(
            f"the model in {folder} cannot be loaded: {_first_line(error)}",
            hint=_load_hint(error, device),
        ) from error
    _check_complete(folder, info)
    return cast("PreTrainedModel", placed.eval())


def _check_complete(folder: Path, info: Mapping[str, Any]) -> None:
    # transformers fills what a checkpoint lacks with random numbers and only warns.
    missing = sorted(info["missing_keys"])
    if missing:
        raise UnsupportedModel(
            f"the weights in {folder} lack {len(missing)} tensors, the first is {missing[0]}",
            hint="the checkpoint is incomplete, or not a decoder-only language model",
            missing=missing,
        )


def _load_failures() -> tuple[type[Exception], ...]:
    """Return what loading was seen to raise on bad files."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,  # mismatched shapes, memory
        ImportError,  # accelerate, sentencepiece
        SafetensorError,
        StrictDataclassError,
    )


def _load_hint(error: Exception, device: str) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "try --dtype bfloat16, --device auto, or a smaller model"
    if device == "auto" and isinstance(error, (ImportError, ValueError)):
        return "device auto needs accelerate: pip install accelerate"
    return "check that config.json belongs to these weights and that the files are whole"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
