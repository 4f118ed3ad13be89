"""The drift test: whether margins met later are spread as those that a profile was tested on."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from toolguard.guard.distribution import Distribution
from toolguard.guard.errors import ConfigError
from toolguard.guard.profile_meta import ProfileMeta
from toolguard.guard.signals import SIGNALS

TEST = "Two-sample Kolmogorov-Smirnov test"
FEWEST = 50  # live margins below which nothing is said
LEVEL = 0.001  # for all signals together, at each look

DriftState = Literal["calm", "alarm", "too_few", "no_reference"]
"""`no_reference`: there is no profile, or it keeps no distribution of its margins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalDrift:
    """The test on one signal.

    Args:
        signal: its name.
        distance: largest difference between the two distribution functions, in [0, 1].
        p: chance of so large a distance without drift, times the number of signals tested.
        live: live margins.
        reference: margins of the profile's test split.
        median_live: median of the live margins.
        median_reference: median of the profile's.
    """

    signal: str
    distance: float
    p: float
    live: int
    reference: int
    median_live: float
    median_reference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What the test says.

    Args:
        state: in one word.
        signals: the tests, the most telling first.
        live: live margins at hand, of the signal with the fewest.
    """

    state: DriftState
    signals: tuple[SignalDrift, ...] = ()
    live: int = 0


def reference_distributions(profile: ProfileMeta | None) -> dict[str, Distribution]:
    """Return what the profile keeps of its test split, by `p_wrong` or signal; empty if nothing.

    Raises:
        ConfigError: if what it keeps cannot be read.
    """
    test = profile.metrics.get("test") if profile else None
    kept = test.get("distributions") if isinstance(test, Mapping) else None
    try:
        return {
            str(name): Distribution.from_dict(data)
            for name, data in (kept.items() if isinstance(kept, Mapping) else ())
        }
    except ConfigError as error:
        raise ConfigError(
            f"the profile's metrics.test.distributions cannot be read: {error.message}",
            hint="make the profile again with `toolguard calibrate`",
        ) from None


def measure_drift(
    live: Mapping[str, Sequence[float]], reference: Mapping[str, Distribution]
) -> Drift:
    """Return whether a signal's live margins are distributed otherwise than at calibration.

    Args:
        live: signal -> margins met lately; what is no signal is passed over.
        reference: signal -> distribution of the margins on calls that calibration only tested on.
    """
    names = [name for name, kept in reference.items() if name in SIGNALS and kept.n]
    if not names:
        return Drift(state="no_reference")
    fewest = min(len(live.get(name, ())) for name in names)
    if fewest < FEWEST:
        return Drift(state="too_few", live=fewest)
    tests = [_signal_drift(name, live[name], reference[name], len(names)) for name in names]
    tests.sort(key=lambda test: (test.p, -test.distance))
    return Drift(state="alarm" if tests[0].p < LEVEL else "calm", signals=tuple(tests), live=fewest)


def _signal_drift(
    name: str, live: Sequence[float], reference: Distribution, tests: int
) -> SignalDrift:
    distance = ks_distance(live, reference)
    return SignalDrift(
        signal=name,
        distance=distance,
        # Bonferroni: whichever signal looks worst is the one that is reported.
        p=min(1.0, tests * ks_p_value(distance, len(live), reference.n)),
        live=len(live),
        reference=reference.n,
        median_live=sorted(live)[(len(live) - 1) // 2],
        median_reference=reference.quantile(0.5),
    )


def ks_distance(live: Sequence[float], reference: Distribution) -> float:
    """Return the largest difference of the distribution functions at the values that are kept.

    Between them it may be larger, never smaller, so the test errs towards silence.
    """
    rising = sorted(live)
    return max(
        abs(bisect_right(rising, value) / len(rising) - share)
        for value, share in zip(reference.values, reference.shares, strict=True)
    )


def ks_p_value(distance: float, n: int, m: int) -> float:
    """Return the chance of at least this distance between samples of n and m of one distribution.

    Exact for continuous values up to the approximation of two samples by one of n m / (n + m).

    Source: Smirnov (1948), "Table for estimating the goodness of fit of empirical distributions";
        Hodges (1958), "The significance probability of the Smirnov two-sample test".
    """
    from scipy.stats import kstwo  # a second of import that no verdict on a call should pay

    size = max(1, math.floor(n * m / (n + m) + 0.5))
    return float(kstwo.sf(distance, size))
