"""The models that are measured, and guards for them that need no calibration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from toolguard.adapters.decision_token import name_tokens
from toolguard.adapters.loading import REFERENCE, LoadedModel, load_model, wrap_model
from toolguard.adapters.wire import detect_format
from toolguard.calibration.fitting.calibration_run import identity_of
from toolguard.calibration.training.agent import tokenizer_texts
from toolguard.calibration.training.architecture import (
    DEFAULT_SHAPE,
    Shape,
    build_agent,
    train_tokenizer,
)
from toolguard.calibration.training.catalog import load_catalog
from toolguard.calibration.training.examples import catalog_pool
from toolguard.guard.calibrator import Calibrator
from toolguard.guard.errors import ConfigError
from toolguard.guard.guard import Guard
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile
from toolguard.guard.profile_meta import (
    ProfileMeta,
    ProfileTool,
    RequestedRisk,
    RiskEntry,
    SplitCounts,
)
from toolguard.guard.readout import build_readout
from toolguard.guard.tools import Menu

UNTRAINED = "untrained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A model to measure.

    Args:
        loaded: the model.
        source: what `load_model` finds it under, also in another process.
        title: what the report calls it.
    """

    loaded: LoadedModel
    source: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeShape:
    """Size of the random model; the default is a Qwen3 of 104 million parameters."""

    width: int = 768
    layers: int = 12
    vocabulary: int = 32_768


def open_agent(model: str, folder: Path, shape: Shape = DEFAULT_SHAPE) -> Agent:
    """Return the agent that `model` names.

    Args:
        model: "reference", "untrained", or what `load_model` takes. An installation without the
            reference agent gives an untrained one of the same shape: times do not depend on what
            the weights are.
        folder: where an untrained agent is saved.
        shape: of an untrained agent.

    Raises:
        ConfigError: if there is no such model.
    """
    title = model if model in {REFERENCE, UNTRAINED} else "another model"
    if model == REFERENCE:
        try:
            return Agent(loaded=load_model(model), source=model, title=title)
        except ConfigError:
            model, title = UNTRAINED, "untrained, as no reference agent is installed"
    if model == UNTRAINED:
        model = str(_save_untrained(folder, shape))
    return Agent(loaded=load_model(model), source=model, title=title)


def _save_untrained(folder: Path, shape: Shape) -> Path:
    tokenizer = train_tokenizer(tokenizer_texts([catalog_pool()], load_catalog(), 0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_agent(tokenizer, shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def large_agent(small: LoadedModel, shape: LargeShape, dtype: torch.dtype) -> LoadedModel:
    """Return a random Qwen3 with the tokenizer of `small`; some vocabulary is never used."""
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=3 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 64,
        num_key_value_heads=max(1, shape.width // 192),
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=small.tokenizer.eos_token_id,
        pad_token_id=small.tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    nn.Module.to(model, dtype)  # the model's own `to` has no annotations
    return wrap_model(model.eval(), small.tokenizer, name="random")


def random_profile(loaded: LoadedModel, menu: Menu, *, threshold: float | None) -> Profile:
    """Return a profile with random means: it costs what a calibrated one does.

    Args:
        loaded: its model.
        menu: its tools.
        threshold: P(wrong) up to which calls pass; None lets none pass.
    """
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(len(menu), loaded.view.hidden_size, generator=draw)
    centre = means.mean(0)
    return Profile(
        meta=_random_meta(loaded, menu, threshold),
        readout=build_readout("centred_cosine", means.double(), centre.double()),
        means=means,
        centre=centre,
        covariance=None,
        seen=torch.zeros(0, dtype=torch.int64),
    )


def _random_meta(loaded: LoadedModel, menu: Menu, threshold: float | None) -> ProfileMeta:
    wire = detect_format(loaded.tokenizer)
    risk = RiskEntry(
        target=0.05,
        confidence=0.95,
        threshold=threshold,
        n=100,
        coverage=0.0 if threshold is None else 1.0,
        realised=0.0,
        upper_bound=0.05,
    )
    return ProfileMeta(
        toolguard_version="0",
        model=identity_of(loaded),
        wire_format=wire.name,
        prefix_text=wire.prefix(),
        prefix_ids=name_tokens(loaded.tokenizer, wire, menu.names, "\n").prefix_ids,
        layer=max(0, len(loaded.view.blocks) - 2),
        readout="centred_cosine",
        tools=tuple(
            ProfileTool(
                name=tool.name, content_hashes=(tool.content_hash,), n=10, status="calibrated"
            )
            for tool in menu
        ),
        calibrator=_calibrator().to_dict(),
        signals=("logprob", "activation"),
        risk=(risk,),
        requested_risk=RequestedRisk(target=0.05, confidence=0.95),
        gap_low_quartile=0.1,
        dataset_hash="0" * 64,
        seed=0,
        splits=SplitCounts(fit=1, select=1, test=1),
        seen="seen.safetensors",
        metrics={},
    )


def _calibrator() -> Calibrator:
    return Calibrator(
        features=("logprob", "activation"),
        weights=(-1.0, -1.0),
        intercept=0.0,
        centres=(0.0, 0.0),
        scales=(1.0, 1.0),
        clip=6.0,
    )


@contextmanager
def enforcing_guard(profile: Profile, vetoed: Sequence[str] = ()) -> Iterator[Guard]:
    """Give a guard that enforces and writes its records, as JSON lines, to nowhere.

    Args:
        profile: what it judges by.
        vetoed: tools whose doubtful calls are vetoed; others' are confirmed by nobody.
    """
    policy = Policy.load(
        {"mode": "enforce", "tools": {name: {"doubtful": "veto"} for name in vetoed}}
    )
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        logger = structlog.wrap_logger(
            structlog.PrintLogger(nowhere),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.processors.JSONRenderer(),
            ],
        )
        yield Guard(profile, policy, logger=logger)
