"""Stand-ins for several test files: profiles without calibration, decoders with a script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import structlog
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from toolguard.adapters.decision_token import name_tokens
from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.detection import detect_format
from toolguard.calibration.fitting.calibration_run import identity_of
from toolguard.guard.answer_gate import AnswerGate
from toolguard.guard.calibrator import Calibrator
from toolguard.guard.guard import Guard
from toolguard.guard.policy import Policy
from toolguard.guard.profile import Profile
from toolguard.guard.profile_meta import (
    CallOrAnswer,
    NoCallEntry,
    NoCallKind,
    ProfileMeta,
    ProfileTool,
    RequestedRisk,
    RiskEntry,
    SplitCounts,
)
from toolguard.guard.readout import build_readout
from toolguard.guard.tools import Menu


def fake_profile(
    loaded: LoadedModel,
    menu: Menu,
    *,
    wire: WireFormat | None = None,
    threshold: float | None = 1.0,
    uncalibrated: Sequence[str] = (),
    layer: int = 1,
    seed: int = 0,
) -> Profile:
    """Return a profile of this model with random means; it allows P(wrong) up to `threshold`."""
    wire = wire or detect_format(loaded.tokenizer)
    names = name_tokens(loaded.tokenizer, wire, menu.names, "\n")
    draw = torch.Generator().manual_seed(seed)
    means = torch.randn(len(menu), loaded.view.hidden_size, generator=draw)
    centre = means.mean(0)
    calibrator = Calibrator(
        features=("logprob", "activation"),
        weights=(-1.0, -1.0),
        intercept=0.0,
        centres=(0.0, 0.0),
        scales=(1.0, 1.0),
        clip=6.0,
    )
    meta = ProfileMeta(
        toolguard_version="0",
        model=identity_of(loaded),
        wire_format=wire.name,
        prefix_text=wire.prefix(),
        prefix_ids=names.prefix_ids,
        layer=layer,
        readout="centred_cosine",
        tools=tuple(
            ProfileTool(
                name=tool.name,
                content_hashes=(tool.content_hash,),
                n=5,
                status="uncalibrated" if tool.name in uncalibrated else "calibrated",
            )
            for tool in menu
        ),
        calibrator=calibrator.to_dict(),
        signals=("logprob", "activation"),
        risk=(
            RiskEntry(
                target=0.05,
                confidence=0.95,
                threshold=threshold,
                n=100,
                coverage=1.0,
                realised=0.0,
                upper_bound=0.05,
            ),
        ),
        requested_risk=RequestedRisk(target=0.05, confidence=0.95),
        gap_low_quartile=10.0,
        dataset_hash="0" * 64,
        seed=0,
        splits=SplitCounts(fit=1, select=1, test=1),
        seen="seen.safetensors",
        metrics={},
    )
    return Profile(
        meta=meta,
        readout=build_readout("centred_cosine", means.double(), centre.double()),
        means=means,
        centre=centre,
        covariance=None,
        seen=torch.zeros(0, dtype=torch.int64),
    )


def gated(
    profile: Profile,
    *,
    answer: float = 0.1,
    ask: float = 0.1,
    limit: float | None = 0.5,
    layer: int = 1,
    weight: float = 0.0,
    seed: int = 0,
) -> Profile:
    """Return the profile with a gate of random means that gives these probabilities.

    A weight below 0 lets them depend on what is read.
    """
    dim = profile.meta.model.hidden_size
    means = torch.randn(3, dim, generator=torch.Generator().manual_seed(seed)).double()
    risk = profile.meta.risk[0].model_copy(update={"threshold": limit})
    probabilities: dict[NoCallKind, float] = {"answer": answer, "ask": ask}
    kinds = {
        kind: NoCallEntry(
            n=20,
            calibrator=Calibrator(
                features=("logprob", "activation"),
                weights=(weight, weight),
                intercept=math.log(value / (1 - value)),
                centres=(0.0, 0.0),
                scales=(1.0, 1.0),
                clip=6.0,
            ).to_dict(),
            risk=(risk,),
        )
        for kind, value in probabilities.items()
    }
    section = CallOrAnswer(layer=layer, covariance_target="diagonal", n_call=20, kinds=kinds)
    readout = build_readout("lda", means, means.mean(0), torch.eye(dim).double())
    return replace(
        profile,
        meta=profile.meta.model_copy(update={"call_or_answer": section}),
        gate=AnswerGate(section=section, readout=readout),
    )


def quiet_guard(profile: Profile | None, **policy: object) -> Guard:
    """Return a guard whose log goes nowhere."""
    logger = structlog.wrap_logger(None, processors=[_drop])
    return Guard(profile, Policy.load(dict(policy)), logger=logger)


def _drop(_logger: object, _method: str, _event: object) -> str:
    raise structlog.DropEvent


class Script(LogitsProcessor):
    """Makes `generate` write given tokens, one list a row, then the end token."""

    def __init__(
        self, prompt_length: int | None, scripts: Sequence[Sequence[int]], end: int
    ) -> None:
        self.prompt_length, self.scripts, self.end = prompt_length, scripts, end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores that leave one token possible a row."""
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
        step = input_ids.shape[1] - self.prompt_length
        forced = torch.full_like(scores, -torch.inf)
        for row, script in enumerate(self.scripts):
            forced[row, script[step] if step < len(script) else self.end] = 0.0
        return forced


def script_for(tokenizer: PreTrainedTokenizerBase, text: str) -> Script:
    """Return a script of one row that writes `text`."""
    return Script(
        None, [tokenizer(text, add_special_tokens=False)["input_ids"]], tokenizer.eos_token_id
    )


class Opening(LogitsProcessor):
    """Makes each row begin with given tokens; a row that has left them, or is through, is free."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.prompt_length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores that leave one token possible in the rows that keep to the opening."""
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
        forced = scores.clone()
        for row, tokens in enumerate(input_ids[:, self.prompt_length :].tolist()):
            if len(tokens) < len(self.tokens) and tokens == self.tokens[: len(tokens)]:
                forced[row] = -torch.inf
                forced[row, self.tokens[len(tokens)]] = 0.0
        return forced
