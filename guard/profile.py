"""A profile: what calibration learned of one model, as a folder that a guard loads.

The facts are `guard.profile_meta`, the files `guard.profile_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from toolguard.guard.answer_gate import AnswerGate, threshold_at
from toolguard.guard.calibrator import Calibrator
from toolguard.guard.errors import ArtifactMismatch, ReadoutError, ShapeError
from toolguard.guard.profile_files import (
    AGAIN,
    ProfileFiles,
    damaged,
    read_profile_files,
    write_profile_files,
)
from toolguard.guard.profile_meta import ProfileMeta, ProfileTool
from toolguard.guard.readout import Readout
from toolguard.guard.tools import Menu

ToolStatus = Literal["calibrated", "uncalibrated", "changed", "unknown"]
"""How far a profile knows a tool: `changed` has another description or schema than it met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a running model must have in common with the profile's."""

    fingerprint: str
    template_hash: str
    tokenizer_hash: str
    wire_format: str
    hidden_size: int
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MenuView:
    """A profile as seen from one menu; immutable, so one view can serve many requests.

    Args:
        names: the menu's tools, in menu order.
        statuses: by name. `changed`: the name is known, this definition of it is not; its old mean
            is scored all the same, for the policy to trust or not.
        known: (known,) int64 positions in `names` of the tools the profile has a mean of.
        readout: of the known tools, in that order; None if there is none.
        means: (known, dim) float32.
    """

    names: tuple[str, ...]
    statuses: Mapping[str, ToolStatus]
    known: Tensor
    readout: Readout | None
    means: Tensor

    def scores(self, hidden: Tensor) -> Tensor:
        """Return every tool's score at the decision token.

        Args:
            hidden: (dim,) or (rows, dim), any float dtype and device.

        Returns: (names,) or (rows, names) float32 on the view's device; -inf for unknown tools.

        Raises:
            ShapeError: if `hidden` has another width.
            ReadoutError: if a known tool's score is not finite.
        """
        shape = (*hidden.shape[:-1], len(self.names))
        scores = torch.full(shape, -torch.inf, device=self.means.device)
        if self.readout is not None:
            scores[..., self.known] = self.readout.scores(hidden)
        return scores

    def direction(self, source: str, target: str) -> Tensor:
        """Return (dim,) float32, the mean of `target` minus the mean of `source`.

        Raises:
            ReadoutError: if the profile has no mean of one of the two.
        """
        return self._mean(target) - self._mean(source)

    def _mean(self, name: str) -> Tensor:
        known = [self.names[position] for position in self.known.tolist()]
        if name not in known:
            raise ReadoutError(f"the profile has no mean of the tool {name!r}", tool=name)
        return self.means[known.index(name)]

    def to(self, device: torch.device | str) -> MenuView:
        """Return the same view with its tensors on `device`."""
        return MenuView(
            names=self.names,
            statuses=self.statuses,
            known=self.known.to(device),
            readout=None if self.readout is None else self.readout.to(device),
            means=self.means.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profile:
    """What calibration learned of one model.

    Args:
        meta: facts.
        readout: of all its tools, in the order of `meta.tools`.
        means: (tools, dim) float32.
        centre: (dim,) float32 mean of the fitted hidden states.
        covariance: (dim, dim) float64 within-tool covariance, shrunk; None but for `lda`, which
            needs it to add tools.
        seen: (queries,) int64 fingerprints, the bits of `query_fingerprint` read as signed.
        gate: whether a call should be made at all, as `meta.call_or_answer` says; None if the
            profile does not know.

    Raises:
        ShapeError: if the parts do not fit each other.
    """

    meta: ProfileMeta
    readout: Readout
    means: Tensor
    centre: Tensor
    covariance: Tensor | None
    seen: Tensor
    gate: AnswerGate | None = None

    def __post_init__(self) -> None:
        tools, dim = len(self.meta.tools), self.meta.model.hidden_size
        found = {
            "weights": self.readout.weights.shape == (tools, dim),
            "means": self.means.shape == (tools, dim),
            "centre": self.centre.shape == (dim,),
            "covariance": self.covariance is None or self.covariance.shape == (dim, dim),
            "seen": self.seen.ndim == 1 and self.seen.dtype == torch.int64,
            "readout": self.readout.kind == self.meta.readout,
            "gate": (self.gate and self.gate.section) == self.meta.call_or_answer
            and (self.gate is None or self.gate.readout.weights.shape[1] == dim),
        }
        if wrong := [name for name, fits in found.items() if not fits]:
            raise ShapeError(f"{', '.join(wrong)} do not fit a profile of {tools} tools by {dim}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its tools, in the order of the tools axis."""
        return tuple(tool.name for tool in self.meta.tools)

    @property
    def calibrator(self) -> Calibrator:
        """The map from margins to P(wrong)."""
        return Calibrator.from_dict(self.meta.calibrator)

    @property
    def seen_queries(self) -> frozenset[int]:
        """Unsigned 64-bit fingerprints of the queries that fitted or selected anything."""
        return frozenset(value & 0xFFFF_FFFF_FFFF_FFFF for value in self.seen.tolist())

    def threshold(self, target: float | None = None) -> float | None:
        """Return the threshold on P(wrong) for a risk target; None if no call may run by it.

        Args:
            target: highest error rate wanted; None is the one requested at calibration. Between
                stored targets the next stricter one counts.
        """
        wanted = self.meta.requested_risk.target if target is None else target
        return threshold_at(self.meta.risk, wanted)

    def no_call_limits(self, target: float | None = None) -> dict[str, float | None]:
        """Return, by kind of turn without a call, the threshold on P(it should stand here instead).

        Args:
            target: as in `threshold`.

        Returns: nothing if the profile does not know when not to call; None for a kind where no
            call may go on.
        """
        if self.gate is None:
            return {}
        wanted = self.meta.requested_risk.target if target is None else target
        return {kind: self.gate.threshold(kind, wanted) for kind in self.gate.kinds}

    def verify(self, facts: ModelFacts) -> None:
        """Check that the profile was made with this model, tokenizer and format.

        Raises:
            ArtifactMismatch: at the first difference; fields `field`, `expected`, `found`.
        """
        model = self.meta.model
        rows = (
            ("hidden_size", model.hidden_size, facts.hidden_size, "load the profile's own model"),
            ("blocks", model.blocks, facts.blocks, "load the profile's own model"),
            ("fingerprint", model.fingerprint, facts.fingerprint, "load the profile's own weights"),
            (
                "tokenizer_hash",
                model.tokenizer_hash,
                facts.tokenizer_hash,
                "load the profile's own tokenizer",
            ),
            (
                "template_hash",
                model.template_hash,
                facts.template_hash,
                "use the chat template it had at calibration",
            ),
            (
                "wire_format",
                self.meta.wire_format,
                facts.wire_format,
                f"pass --format {self.meta.wire_format}",
            ),
        )
        for field, expected, found, remedy in rows:
            if expected != found:
                raise ArtifactMismatch(
                    f"the profile was made with another {field.replace('_', ' ')} of "
                    f"{model.name!r}: expected {expected}, found {found}",
                    hint=f"{remedy}, or {AGAIN}",
                    field=field,
                    expected=expected,
                    found=found,
                )

    def view(self, menu: Menu) -> MenuView:
        """Return the profile as seen from one menu."""
        rows = {name: row for row, name in enumerate(self.names)}
        known = [place for place, name in enumerate(menu.names) if name in rows]
        picked = [rows[menu.names[place]] for place in known]
        return MenuView(
            names=menu.names,
            statuses={
                tool.name: self._status(tool.content_hash, rows.get(tool.name)) for tool in menu
            },
            known=torch.tensor(known, dtype=torch.int64),
            readout=self.readout.for_menu(picked) if picked else None,
            means=self.means[picked],
        )

    def _status(self, content_hash: str, row: int | None) -> ToolStatus:
        if row is None:
            return "unknown"
        tool: ProfileTool = self.meta.tools[row]
        return tool.status if content_hash in tool.content_hashes else "changed"

    def save(self, folder: Path | str) -> None:
        """Write the profile; files that exist are replaced, each whole.

        Raises:
            ConfigError: if the folder cannot be written.
        """
        write_profile_files(Path(folder), self.meta, self._tensors(), self.seen)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            "weights": self.readout.weights,
            "bias": self.readout.bias,
            "means": self.means,
            "centre": self.centre,
        }
        if self.covariance is not None:
            tensors["covariance"] = self.covariance
        if self.gate is not None:
            tensors |= _gate_tensors(self.gate)
        return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}

    @classmethod
    def load(cls, folder: Path | str) -> Profile:
        """Return the profile in a folder.

        Raises:
            ConfigError: if there is none.
            ArtifactMismatch: if a file is damaged, or of another version or calibration.
        """
        files = read_profile_files(Path(folder))
        try:
            return _assemble(files)
        except (KeyError, ShapeError) as error:
            raise damaged(Path(folder), f"its tensors do not fit: {error}") from error


def _assemble(files: ProfileFiles) -> Profile:
    meta, tensors = files.meta, files.tensors
    readout = Readout(
        kind=meta.readout,
        weights=tensors["weights"],
        bias=tensors["bias"],
        centre=None if meta.readout == "cosine" else tensors["centre"],
        normalise=meta.readout != "lda",
    )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ShapeError("a value is NaN or infinite")
    return Profile(
        meta=meta,
        readout=readout,
        means=tensors["means"],
        centre=tensors["centre"],
        covariance=tensors.get("covariance"),
        seen=files.seen,
        gate=_assemble_gate(files),
    )


def _gate_tensors(gate: AnswerGate) -> dict[str, Tensor]:
    if gate.readout.centre is None:
        raise ShapeError("the readout of a gate has a centre")
    return {
        "opening_weights": gate.readout.weights,
        "opening_bias": gate.readout.bias,
        "opening_centre": gate.readout.centre,
    }


def _assemble_gate(files: ProfileFiles) -> AnswerGate | None:
    section = files.meta.call_or_answer
    if section is None:
        return None
    readout = Readout(
        kind="lda",
        weights=files.tensors["opening_weights"],
        bias=files.tensors["opening_bias"],
        centre=files.tensors["opening_centre"],
        normalise=False,
    )
    return AnswerGate(section=section, readout=readout)
