"""How numbers spread: the share of them at or below some of them, small enough for a profile."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from toolguard.guard.errors import ConfigError

POINTS = 201  # kept at most; every half per cent
_DIGITS = 6  # as margins are rounded in audit records, so that equal values stay equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """The empirical distribution function of a sample, at some of its values.

    Args:
        n: numbers in the sample; those that are not finite are left out.
        values: rising.
        shares: share of the sample at or below each value, rising to 1.

    Raises:
        ConfigError: if the parts do not fit each other.
    """

    n: int
    values: tuple[float, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        whole = len(self.values) == len(self.shares) and (self.n > 0) == bool(self.values)
        ends = not self.shares or (self.shares[0] > 0 and self.shares[-1] == 1)
        if not (whole and ends and _rises(self.values) and _rises(self.shares)):
            raise ConfigError("a distribution needs rising values and shares that rise to 1")

    @classmethod
    def of(cls, numbers: Iterable[float], *, points: int = POINTS) -> Distribution:
        """Return the distribution of `numbers`, exact at no more than `points` of them."""
        sample = sorted(round(float(x), _DIGITS) for x in numbers if math.isfinite(x))
        n = len(sample)
        ranks = {math.ceil(k * n / points) - 1 for k in range(1, points + 1)} if n else set()
        values = sorted({sample[rank] for rank in ranks})
        shares = tuple(bisect_right(sample, value) / n for value in values)
        return cls(n=n, values=tuple(values), shares=shares)

    def share_at(self, value: float) -> float:
        """Return the share of the sample at or below `value`, between kept values a lower bound."""
        place = bisect_right(self.values, value)
        return self.shares[place - 1] if place else 0.0

    def quantile(self, share: float) -> float:
        """Return the least kept value with at least `share` of the sample at or below it.

        Raises:
            ConfigError: if the sample is empty.
        """
        for value, reached in zip(self.values, self.shares, strict=True):
            if reached >= share:
                return value
        raise ConfigError("an empty sample has no quantile")

    def to_dict(self) -> dict[str, Any]:
        """Return the distribution as JSON-ready values."""
        return {"n": self.n, "values": list(self.values), "shares": list(self.shares)}

    @classmethod
    def from_dict(cls, data: object) -> Distribution:
        """Return the distribution that `to_dict` described.

        Raises:
            ConfigError: if `data` is something else.
        """
        if not isinstance(data, Mapping) or set(data) != {"n", "values", "shares"}:
            raise ConfigError("a distribution has n, values and shares")
        try:
            return cls(
                n=int(data["n"]),
                values=tuple(map(float, data["values"])),
                shares=tuple(map(float, data["shares"])),
            )
        except (TypeError, ValueError) as error:
            raise ConfigError("a distribution holds numbers alone") from error


def _rises(numbers: tuple[float, ...]) -> bool:
    finite = all(math.isfinite(x) for x in numbers)
    return finite and all(a < b for a, b in pairwise(numbers))
