"""What `profile.json` holds: the facts of a calibration, validated when a file enters."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from toolguard.guard.calibrator import Calibrator
from toolguard.guard.errors import ConfigError
from toolguard.guard.readout import ReadoutKind

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
CalibratedStatus = Literal["calibrated", "uncalibrated"]
CovarianceTarget = Literal["identity", "diagonal"]
NoCallKind = Literal["answer", "ask"]
"""What should have happened in place of a call: an answer in words, or a question to the user."""

OPENING_SIGNALS = ("logprob", "activation")
"""Margins read where a call could start, larger where a call is right: the log-odds of its opening,
and how much nearer the state is to turns with a call than to those without."""

Correction = Literal["redirect", "redirect_above_half", "between_two"]
"""A correction of doubtful calls that the guard can carry out: the best other tool, the same for
calls that are more likely wrong than right, or what the model chooses between the best two tools
if it is asked again with these alone."""


class _Entry(BaseModel):
    """Base of everything in the file: unknown keys and numbers that are not finite refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _readable(calibrator: dict[str, Any]) -> dict[str, Any]:
    try:
        Calibrator.from_dict(calibrator)
    except ConfigError as error:
        raise ValueError(error.message) from None
    return calibrator


class ModelIdentity(_Entry):
    """The model a profile was made with; hashes are explained in `adapters.fingerprint`."""

    name: str
    revision: str = ""
    fingerprint: str
    dtype: str
    family: str
    blocks: Annotated[int, Field(ge=1)]
    hidden_size: Annotated[int, Field(ge=1)]
    template_hash: str
    tokenizer_hash: str


class ProfileTool(_Entry):
    """One tool of a profile, in the order of the tensors' tools axis.

    Args:
        name: exact.
        content_hashes: every definition of that name that calibration met.
        n: calls behind the mean; 0 if the mean is a stand-in from the unembedding.
        status: whether the mean comes from enough calls of this tool.
    """

    name: Annotated[str, Field(min_length=1)]
    content_hashes: tuple[str, ...]
    n: Count
    status: CalibratedStatus


class RiskEntry(_Entry):
    """A threshold for one risk target, see `calibration.guarantee.risk`.

    Args:
        target: highest error rate among allowed calls.
        confidence: chance that it holds.
        threshold: calls with P(wrong) <= threshold may run; None if none could be shown safe.
        n: held-out calls it was chosen on.
        coverage: share of them that it accepts.
        realised: their error rate; None if none is accepted.
        upper_bound: one-sided bound on the error rate; None if none is accepted.
    """

    target: Annotated[float, Field(gt=0, lt=1)]
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    threshold: Share | None
    n: Count
    coverage: Share | None
    realised: Share | None
    upper_bound: Share | None


class RequestedRisk(_Entry):
    """The risk that the user asked for."""

    target: Annotated[float, Field(gt=0, lt=1)]
    confidence: Annotated[float, Field(ge=0.5, lt=1)]


class NoCallEntry(_Entry):
    """How one kind of turn that should not have been a call is told.

    Args:
        n: such turns behind its mean.
        calibrator: from `OPENING_SIGNALS` to P(no call should be made, for this reason).
        risk: thresholds on it, one a target, rising; what they bound is the share of this kind
            among the calls that the model starts and the gate lets through.
    """

    n: Annotated[int, Field(ge=1)]
    calibrator: dict[str, Any]
    risk: tuple[RiskEntry, ...] = ()

    @field_validator("calibrator")
    @classmethod
    def _calibrator_can_be_used(cls, value: dict[str, Any]) -> dict[str, Any]:
        if strange := set(_readable(value)["features"]) - set(OPENING_SIGNALS):
            raise ValueError(f"no such signal where a call could start: {', '.join(strange)}")
        return value


class CallOrAnswer(_Entry):
    """What a profile knows of whether a call should be made at all, see `guard.answer_gate`.

    Args:
        layer: index of the block whose output is read where a call could start.
        covariance_target: what the covariance was shrunk towards.
        n_call: turns with a right call behind the first mean.
        kinds: in the order of the means behind the first one.
        metrics: what was measured while it was made; for people and reports.
    """

    layer: Count
    covariance_target: CovarianceTarget
    n_call: Annotated[int, Field(ge=1)]
    kinds: Annotated[dict[NoCallKind, NoCallEntry], Field(min_length=1)]
    metrics: dict[str, Any] = {}


class SplitCounts(_Entry):
    """Labelled calls in each split."""

    fit: Count
    select: Count
    test: Count


class ProfileMeta(_Entry):
    """Everything of a profile that is not a tensor.

    Args:
        version: of this file format.
        toolguard_version: that wrote it.
        model: what it belongs to.
        wire_format: name of the format, as `--format` takes it.
        prefix_text: canonical text from the assistant turn's start to the name.
        prefix_ids: its tokens; the last one is the decision token. Empty if the prompt's last token
            is the decision token.
        layer: index of the block whose output is read.
        readout: kind of the readout.
        covariance_target: what the covariance was shrunk towards; None but for `lda`.
        tools: in the order of the tensors' tools axis.
        calibrator: see `Calibrator.to_dict`.
        signals: margins that the calibrator uses.
        single_calibrators: P(wrong) from one signal alone, by signal.
        risk: thresholds, one a target, rising.
        requested_risk: the target that None stands for in `Profile.threshold`.
        gap_low_quartile: lower quartile of the activation's top gap on the select split, the gate
            of steering; None if unknown.
        dataset_hash: SHA-256 of the records.
        seed: of splits and folds.
        splits: labelled calls in each.
        seen: name of the file with the fingerprints of queries that fitted or selected anything.
        tensors_sha256: of the tensors' file; `Profile.save` fills it in.
        metrics: what was measured while it was made; for people and reports.
        preset: recipe it was made by; empty for the project's own.
        menu: definitions of the tools that were most often offered together, for a first look.
        correction: what calibration showed to fix more doubtful calls than it breaks; None if
            nothing did, or nobody measured it.
    """

    version: Literal[1] = 1
    toolguard_version: str
    model: ModelIdentity
    wire_format: str
    prefix_text: str
    prefix_ids: tuple[int, ...]
    layer: Count
    readout: ReadoutKind
    covariance_target: CovarianceTarget | None = None
    tools: Annotated[tuple[ProfileTool, ...], Field(min_length=1)]
    calibrator: dict[str, Any]
    signals: tuple[str, ...]
    single_calibrators: dict[str, dict[str, Any]] = {}
    risk: tuple[RiskEntry, ...]
    requested_risk: RequestedRisk
    gap_low_quartile: float | None
    dataset_hash: str
    seed: int
    splits: SplitCounts
    seen: str = "seen.safetensors"
    tensors_sha256: str = ""
    metrics: dict[str, Any] = {}
    preset: str = ""
    menu: tuple[dict[str, Any], ...] = ()
    call_or_answer: CallOrAnswer | None = None
    correction: Correction | None = None

    @field_validator("calibrator", "single_calibrators")
    @classmethod
    def _calibrators_can_be_read(cls, value: dict[str, Any]) -> dict[str, Any]:
        for data in [value] if "features" in value else value.values():
            _readable(data)
        return value

    @field_validator("seen")
    @classmethod
    def _seen_is_a_plain_name(cls, name: str) -> str:
        # A profile may come from elsewhere; it names files of its own folder only.
        if not name or "/" in name or "\\" in name or name.startswith("."):
            raise ValueError("must be the name of a file in the profile's folder")
        return name

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        names = [tool.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("tool names must be unique")
        if self.layer >= self.model.blocks:
            raise ValueError(f"layer {self.layer} of a model of {self.model.blocks} blocks")
        targets = [entry.target for entry in self.risk]
        if targets != sorted(set(targets)) or self.requested_risk.target not in targets:
            raise ValueError("risk targets must rise and hold the requested one")
        if self.call_or_answer is not None and self.call_or_answer.layer >= self.model.blocks:
            raise ValueError(f"layer {self.call_or_answer.layer} of {self.model.blocks} blocks")
        if tuple(self.calibrator.get("features", ())) != self.signals:
            raise ValueError("signals must be the calibrator's features")
        return self
