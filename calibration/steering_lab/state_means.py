"""Mean hidden states of tools: at the decision token, and at the tokens where names part later.

An *opening* is what of a name stands already: no token at the decision token; the tokens that some
names of a menu share at a later place where these part. What a state means depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from toolguard.guard.errors import ConfigError
from toolguard.guard.profile import Profile

Opening = tuple[int, ...]
Place = tuple[Opening, str]
"""An opening, and the tool that was chosen there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StateMeans:
    """Means of some layers.

    Args:
        layers: block indices, in the order of the layers axis.
        rows: place -> (layers, dim) float32.
        counts: place -> how many calls the mean is of.
    """

    layers: tuple[int, ...]
    rows: dict[Place, Tensor]
    counts: dict[Place, int]

    @classmethod
    def of_profile(cls, profile: Profile) -> StateMeans:
        """Return the means a guard steers with: at the decision token, at the profile's layer."""
        calibrated = [
            (tool, mean)
            for tool, mean in zip(profile.meta.tools, profile.means, strict=True)
            if tool.status == "calibrated"
        ]
        return cls(
            layers=(profile.meta.layer,),
            rows={((), tool.name): mean[None] for tool, mean in calibrated},
            counts={((), tool.name): tool.n for tool, _ in calibrated},
        )

    def with_profile(self, profile: Profile) -> StateMeans:
        """Return these means with the profile's own in place of theirs, where it has some."""
        own = StateMeans.of_profile(profile)
        (layer,) = own.layers
        rows = {place: mean.clone() for place, mean in self.rows.items()}
        for place, mean in own.rows.items():
            if layer in self.layers and place in rows:
                rows[place][self.layers.index(layer)] = mean[0]
        return StateMeans(layers=self.layers, rows=rows, counts=self.counts)

    @property
    def tools(self) -> tuple[str, ...]:
        """Names of the tools with a mean at the decision token."""
        return tuple(name for opening, name in self.rows if not opening)

    def mean(self, opening: Opening, tool: str, layer: int) -> Tensor | None:
        """Return (dim,) float32, or None if there is no mean of this tool there.

        Raises:
            ConfigError: if the layer was not read.
        """
        if layer not in self.layers:
            raise ConfigError(
                f"layer {layer} was not read: expected one of {list(self.layers)}", layer=layer
            )
        found = self.rows.get((opening, tool))
        return None if found is None else found[self.layers.index(layer)]

    def difference(
        self, opening: Opening, rivals: Sequence[str], target: str, layer: int
    ) -> Tensor | None:
        """Return (dim,) float32: the target's mean minus the rivals', or None if one is missing.

        Args:
            opening: where.
            rivals: tools; of several, those that have a mean count alike.
            target: another tool.
            layer: block index.
        """
        own = self.mean(opening, target, layer)
        others = [self.mean(opening, rival, layer) for rival in rivals]
        known = [mean for mean in others if mean is not None]
        return None if own is None or not known else own - torch.stack(known).mean(dim=0)

    def separation(self, opening: Opening, layer: int) -> float:
        """Return how far the means of one opening lie apart on average; 0 for fewer than two."""
        rows = [
            mean[self.layers.index(layer)] for (own, _), mean in self.rows.items() if own == opening
        ]
        return float(torch.pdist(torch.stack(rows)).mean()) if len(rows) > 1 else 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class MeanSums:
    """Gathers `StateMeans`, in float64."""

    layers: Sequence[int]
    sums: dict[Place, Tensor] = field(default_factory=dict)
    counts: dict[Place, int] = field(default_factory=dict)

    def add(self, opening: Opening, tool: str, hidden: Tensor) -> None:
        """Add one call's states, (layers, dim)."""
        place = (opening, tool)
        before = self.sums.get(place)
        row = hidden.double()
        self.sums[place] = row if before is None else before + row
        self.counts[place] = self.counts.get(place, 0) + 1

    def means(self, fewest: int) -> StateMeans:
        """Return the means of all places with at least `fewest` calls."""
        kept = {place: n for place, n in self.counts.items() if n >= fewest}
        return StateMeans(
            layers=tuple(self.layers),
            rows={place: (self.sums[place] / n).float() for place, n in kept.items()},
            counts=kept,
        )
