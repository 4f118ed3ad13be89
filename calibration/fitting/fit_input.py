"""What fitting reads and what the user may choose about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from toolguard.calibration.fitting.tool_means import NameRows
from toolguard.calibration.labels.labelled_calls import LabelledCall, LayerPass, places_of
from toolguard.guard.errors import CalibrationError, ConfigError
from toolguard.guard.profile_meta import ModelIdentity
from toolguard.guard.signals import ALWAYS_READ, SIGNALS

FEWEST_CALLS = 20
Preset = Literal["", "paper"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """What the user may choose.

    Args:
        max_risk: highest error rate wanted among allowed calls.
        confidence: chance with which that must hold.
        min_examples: fewest right calls that a mean is made from.
        seed: of the bootstrap and of the preset's choice of queries.
        preset: "paper" takes the published recipe and chooses nothing.
        signals: that P(wrong) uses; empty lets cross-validation choose.
        targets: further error rates that thresholds are wanted for, as tiers of a policy ask.

    Raises:
        ConfigError: if a number lies outside its range, or a signal is unknown or given twice.
    """

    max_risk: float = 0.05
    confidence: float = 0.95
    min_examples: int = 3
    seed: int = 0
    preset: Preset = ""
    signals: tuple[str, ...] = ()
    targets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        risks = (self.max_risk, *self.targets)
        if not all(0 < risk < 1 for risk in risks) or not 0.5 <= self.confidence < 1:
            raise ConfigError(
                f"--max-risk must lie in (0, 1) and --confidence in [0.5, 1), "
                f"found {', '.join(map(str, risks))} and {self.confidence}"
            )
        if self.min_examples < 1:
            raise ConfigError(f"--min-examples must be at least 1, found {self.min_examples}")
        if not set(self.signals) <= set(SIGNALS) or len(set(self.signals)) < len(self.signals):
            raise ConfigError(
                f"--signals {','.join(self.signals)}: expected distinct names",
                hint=f"signals are {', '.join(SIGNALS)}",
            )

    @property
    def fixed_signals(self) -> tuple[str, ...]:
        """The signals that the user, or a preset that chooses nothing, fixed; empty if free."""
        return self.signals or (ALWAYS_READ if self.preset else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDefinition:
    """A tool's name with the content hash of every definition met."""

    name: str
    content_hashes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CollectedCalls:
    """All that fitting reads.

    Args:
        calls: labelled calls.
        layer_pass: their hidden states, one layer at a time.
        layers: block indices that can be read.
        tools: on the axis that `calls` refer to.
        names: stand-ins for tools with too few calls.
        seen: fingerprints of the queries of fit and select.
        model: identity.
        wire_format: its name.
        prefix_text: see `ProfileMeta`.
        prefix_ids: see `ProfileMeta`.
        dataset_hash: of the records.
        notes: facts of the collection, kept in the metrics.
    """

    calls: Sequence[LabelledCall]
    layer_pass: LayerPass
    layers: Sequence[int]
    tools: Sequence[ToolDefinition]
    names: NameRows
    seen: frozenset[int]
    model: ModelIdentity
    wire_format: str
    prefix_text: str
    prefix_ids: tuple[int, ...]
    dataset_hash: str
    notes: Mapping[str, Any] = field(default_factory=dict)


def check_calls(collected: CollectedCalls) -> None:
    """Check that a profile can be fitted to these calls at all.

    Raises:
        CalibrationError: if there are too few calls, or the model got none right.
        ConfigError: if a layer is not one of the model's.
    """
    calls = collected.calls
    if len(calls) < FEWEST_CALLS:
        raise CalibrationError(
            f"{len(calls)} labelled calls are too few, at least {FEWEST_CALLS} are needed",
            hint="give more records that have a call",
            calls=len(calls),
        )
    if all(call.wrong for call in calls if call.split == "fit"):
        raise CalibrationError(
            f"the model got none of {len(places_of(calls, 'fit'))} calls right",
            hint="check the labels and --format; `toolguard doctor` shows the decision token",
        )
    outside = [at for at in collected.layers if not 0 <= at < collected.model.blocks]
    if outside or not collected.layers:
        raise ConfigError(
            f"no such layer: {outside}; the model has blocks 0 to {collected.model.blocks - 1}"
        )
