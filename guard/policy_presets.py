"""The presets: whole policies to start from, which a file's own keys go before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

PresetName = Literal["monitor", "staging", "strict"]

TIERS: Mapping[str, Mapping[str, Any]] = {
    "read": {"doubtful": "allow"},
    "write": {"doubtful": "confirm"},
    "irreversible": {"doubtful": "veto"},
}
"""The tiers of a policy that names none, from the least to the most harmful."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Everything runs; the record says what the defaults would have stopped.
    "monitor": {"mode": "monitor", "unlisted": "judge", "uncalibrated": "deny"},
    # What nobody listed or calibrated is closed, and a person sees every irreversible call.
    "staging": {
        "mode": "enforce",
        "unlisted": "deny",
        "uncalibrated": "deny",
        "tiers": {
            "write": {"doubtful": "confirm"},
            "irreversible": {"doubtful": "confirm", "rule": "confirm"},
        },
    },
    # As staging; evidence has to be better, and arguments that no schema names are refused.
    "strict": {
        "mode": "enforce",
        "unlisted": "deny",
        "uncalibrated": "deny",
        "unknown_arguments": "deny",
        "risk_target": 0.02,
        "tiers": {
            "read": {"doubtful": "clarify", "risk_target": 0.05},
            "write": {"doubtful": "confirm", "risk_target": 0.02},
            "irreversible": {"doubtful": "veto", "rule": "confirm", "risk_target": 0.01},
        },
    },
}


def expand(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a policy's keys with its preset's and the default tiers beneath its own.

    A file that names only known tiers changes these; one that names a new tier gives the whole
    list in its own order. Keys left out of a known tier are inherited either way.
    """
    preset: Mapping[str, Any] = {}
    if isinstance(name := content.get("preset"), str):
        preset = PRESETS.get(name, {})
    base = _merged(TIERS, preset.get("tiers", {}))
    whole = {**preset, **content, "tiers": base}
    own = content.get("tiers")
    if isinstance(own, Mapping):
        merged = _merged(base, own)
        whole["tiers"] = merged if set(own) <= set(base) else {tier: merged[tier] for tier in own}
    elif own is not None:
        whole["tiers"] = own  # not a mapping: validation says so
    return whole


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for tier, keys in own.items():
        inherits = isinstance(keys, Mapping) and tier in base
        merged[tier] = {**base[tier], **keys} if inherits else keys
    return merged
