"""A plane through a profile's tool means, laid so that it shows as much of their spread as any.

For `lda` the space is whitened first, so that distances on the plane are the readout's own; for
the cosines every state is brought to length one. docs/decisions/0003-margin.md has the readouts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toolguard.guard.profile import Profile
from toolguard.guard.readout import ReadoutKind

_FEWEST = 3  # means; fewer span no plane


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ToolMap:
    """A plane, with the place of each tool on it.

    Args:
        kind: of the readout whose distances it shows.
        basis: (dim, 2) float64, applied to a state relative to `origin`.
        origin: (dim,) float64, subtracted first; zero for `cosine`.
        middle: (2,) float64, subtracted last: the centre of the tools.
        tools: (tools, 2) float64, in the order of the profile's tools.
        explained: share of the means' variance that the plane shows, in [0, 1].
    """

    kind: ReadoutKind
    basis: Tensor
    origin: Tensor
    middle: Tensor
    tools: Tensor
    explained: float

    def places(self, hidden: Tensor) -> Tensor:
        """Return the places of states (rows, dim) on the plane, (rows, 2) float64."""
        return _moved(hidden, self.origin, self.kind) @ self.basis - self.middle


def map_tools(profile: Profile) -> ToolMap | None:
    """Return the plane of a profile's tool means; None for fewer than three calibrated tools.

    The calibrated tools decide; the others are only placed on it. Signs are fixed by the largest
    weight of each direction, so that equal profiles give equal maps.

    Source: Fisher (1936), "The use of multiple measurements in taxonomic problems", for the
        whitened case with equal priors.
    """
    status = torch.tensor([tool.status == "calibrated" for tool in profile.meta.tools])
    if int(status.sum()) < _FEWEST:
        return None
    kind = profile.meta.readout
    origin = profile.centre.double()
    if kind == "cosine":
        origin = torch.zeros_like(origin)
    whitening = _whitening(profile)  # (dim, dim)
    points = _moved(profile.means, origin, kind) @ whitening  # (tools, dim)
    spread = points[status] - points[status].mean(dim=0)
    _, sizes, directions = torch.linalg.svd(spread, full_matrices=False)
    plane = directions[:2] * _signs(directions[:2])  # (2, dim)
    places = points @ plane.T
    middle = places[status].mean(dim=0)
    total = float(sizes.square().sum())
    return ToolMap(
        kind=kind,
        basis=whitening @ plane.T,
        origin=origin,
        middle=middle,
        tools=places - middle,
        explained=float(sizes[:2].square().sum()) / total if total else 1.0,
    )


def _moved(states: Tensor, origin: Tensor, kind: ReadoutKind) -> Tensor:
    """Return states (rows, dim) float64 relative to the origin, of length one for the cosines."""
    moved = states.double() - origin
    if kind == "lda":
        return moved
    norms = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    directions: Tensor = moved / norms.clamp(min=torch.finfo(torch.float64).tiny)
    return directions


def _whitening(profile: Profile) -> Tensor:
    """Return W (dim, dim) with W W' the inverse covariance; the identity for the cosines."""
    identity = torch.eye(profile.meta.model.hidden_size, dtype=torch.float64)
    if profile.covariance is None:
        return identity
    lower = torch.linalg.cholesky(profile.covariance.double())
    whitening: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False).T
    return whitening


def _signs(directions: Tensor) -> Tensor:
    """Return (rows, 1) factors that make each row's largest weight positive."""
    largest = directions.abs().argmax(dim=1, keepdim=True)
    return torch.where(directions.gather(1, largest) < 0, -1.0, 1.0).double()
