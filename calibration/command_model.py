"""The model and wire format that a command's options name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from toolguard.adapters.guarded_agent import model_facts
from toolguard.adapters.loading import LoadedModel, load_model
from toolguard.adapters.wire import WireFormat, choose_format
from toolguard.guard.profile import Profile


def open_model(
    options: Mapping[str, Any], format_name: str | None = None
) -> tuple[LoadedModel, WireFormat]:
    """Return what the options of `model_options` name.

    Args:
        options: model, revision, wire_format, layers_path, device and dtype.
        format_name: format without --format; None detects it from the chat template.

    Raises:
        ConfigError: if the model or format does not exist.
        UnsupportedModel: if the guard cannot read the model.
        ReadoutError: if weights or logits are not finite.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call,unused-ignore]
    loaded = load_model(
        options["model"],
        device=options["device"],
        dtype=options["dtype"],
        revision=options["revision"],
        layers_path=options["layers_path"],
    )
    name = options["wire_format"] or format_name
    return loaded, choose_format(name, loaded.tokenizer)


def open_profile(
    folder: Path, options: Mapping[str, Any]
) -> tuple[Profile, LoadedModel, WireFormat]:
    """Return a profile with the model that `options` name, which must be the one it belongs to.

    Args:
        folder: of the profile, which is read first: it takes no time.
        options: see `open_model`; the format is the profile's unless --format names another.

    Raises:
        ArtifactMismatch: if the profile is corrupt, or made with another model.
        ConfigError: if profile, model or format cannot be read.
        UnsupportedModel: if the guard cannot read the model.
        ReadoutError: if weights or logits are not finite.
    """
    profile = Profile.load(folder)
    return profile, *open_model_of(profile, options)


def open_model_of(profile: Profile, options: Mapping[str, Any]) -> tuple[LoadedModel, WireFormat]:
    """Return the model that `options` name, which must be the profile's; see `open_profile`."""
    loaded, wire = open_model(options, profile.meta.wire_format)
    profile.verify(model_facts(loaded, wire))
    return loaded, wire
