"""Add or update single tools of a profile, leaving every other tool's rows bit for bit as they are.

Centre, covariance, calibrator and thresholds stay: they describe the model's states in general.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from toolguard.calibration.fitting.fit_input import CollectedCalls, ToolDefinition
from toolguard.calibration.fitting.fit_profile import signed_fingerprints
from toolguard.calibration.fitting.statistics import ToolStatistics
from toolguard.calibration.fitting.tool_means import right_call_statistics
from toolguard.guard.profile import Profile
from toolguard.guard.profile_meta import ProfileTool
from toolguard.guard.readout import Readout, build_readout, fallback_mean


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ToolUpdate:
    """A profile after single tools were added.

    Args:
        profile: the new one.
        calibrated: tools that have a fresh mean.
        uncalibrated: tools new to the profile with too few right calls: they have a stand-in.
        kept: tools left as they were, with the reason.
    """

    profile: Profile
    calibrated: tuple[str, ...]
    uncalibrated: tuple[str, ...]
    kept: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _NewRow:
    """One tool's fresh entry and mean (dim,) float64."""

    tool: ProfileTool
    mean: Tensor


def add_tools(profile: Profile, collected: CollectedCalls, *, min_examples: int) -> ToolUpdate:
    """Return the profile with the tools that `collected` offers and it does not yet vouch for.

    A tool that is calibrated under each of the definitions offered is left alone, whatever calls of
    it there are; one that is new, changed or uncalibrated gets a mean from its right calls. With
    too few of those a new tool gets a stand-in, and any other stays as it was.

    Args:
        profile: must have been made with the same model.
        collected: all calls count, whatever their split; the profile's layer must be readable.
        min_examples: fewest right calls a mean is made from.

    Raises:
        CalibrationError: if a hidden state is not finite.
    """
    statistics = right_call_statistics(
        collected.calls,
        collected.layer_pass,
        profile.meta.layer,
        collected.names.rows.shape,
        pooled=False,
        wanted=frozenset(range(len(collected.calls))),
    )
    known = {tool.name: tool for tool in profile.meta.tools}
    rows: list[_NewRow] = []
    kept: dict[str, str] = {}
    for index, tool in enumerate(collected.tools):
        before, count = known.get(tool.name), int(statistics.counts[index])
        if before is not None and _vouched_for(before, tool):
            kept[tool.name] = "calibrated already"
        elif count >= min_examples:
            rows.append(_calibrated(tool, statistics, index))
        elif before is None:
            rows.append(_stand_in(tool, profile, collected, index))
        else:
            kept[tool.name] = f"{count} right calls, {min_examples} are needed"
    return ToolUpdate(
        profile=_with_rows(profile, rows, collected),
        calibrated=tuple(row.tool.name for row in rows if row.tool.status == "calibrated"),
        uncalibrated=tuple(row.tool.name for row in rows if row.tool.status == "uncalibrated"),
        kept=kept,
    )


def _vouched_for(before: ProfileTool, tool: ToolDefinition) -> bool:
    return before.status == "calibrated" and set(tool.content_hashes) <= set(before.content_hashes)


def _calibrated(tool: ToolDefinition, statistics: ToolStatistics, index: int) -> _NewRow:
    entry = ProfileTool(
        name=tool.name,
        content_hashes=tool.content_hashes,
        n=int(statistics.counts[index]),
        status="calibrated",
    )
    return _NewRow(tool=entry, mean=statistics.means[index])


def _stand_in(
    tool: ToolDefinition, profile: Profile, collected: CollectedCalls, index: int
) -> _NewRow:
    anchors = [row for row, own in enumerate(profile.meta.tools) if own.status == "calibrated"]
    names = collected.names
    mean = fallback_mean(names.rows[index], names.mean, profile.means[anchors], profile.centre)
    entry = ProfileTool(
        name=tool.name, content_hashes=tool.content_hashes, n=0, status="uncalibrated"
    )
    return _NewRow(tool=entry, mean=mean)


def _with_rows(profile: Profile, rows: list[_NewRow], collected: CollectedCalls) -> Profile:
    """Return the profile with these rows put in or behind; the others are copied, not computed."""
    if not rows:
        return profile
    fresh = build_readout(
        profile.meta.readout,
        torch.stack([row.mean for row in rows]),
        profile.centre.to(torch.float64),
        profile.covariance,
    )
    tools = list(profile.meta.tools)
    places = []
    for row in rows:
        place = next((i for i, own in enumerate(tools) if own.name == row.tool.name), len(tools))
        tools[place : place + 1] = [row.tool]
        places.append(place)
    means = torch.stack([row.mean for row in rows]).to(torch.float32)
    added = {
        "dataset_hash": collected.dataset_hash,
        "tools": [row.tool.model_dump(mode="json") for row in rows],
        "collection": dict(collected.notes),
    }
    metrics = profile.meta.metrics
    meta = profile.meta.model_copy(
        update={
            "tools": tuple(tools),
            "metrics": metrics | {"added": [*metrics.get("added", []), added]},
        }
    )
    return Profile(
        meta=meta,
        readout=_merged(profile.readout, fresh, places, len(tools)),
        means=_put(profile.means, means, places, len(tools)),
        centre=profile.centre,
        covariance=profile.covariance,
        seen=signed_fingerprints(profile.seen_queries | collected.seen),
        gate=profile.gate,
    )


def _merged(old: Readout, fresh: Readout, places: list[int], tools: int) -> Readout:
    return replace(
        old,
        weights=_put(old.weights, fresh.weights, places, tools),
        bias=_put(old.bias, fresh.bias, places, tools),
    )


def _put(old: Tensor, rows: Tensor, places: list[int], length: int) -> Tensor:
    grown = torch.cat([old, old.new_zeros(length - len(old), *old.shape[1:])])
    grown[places] = rows
    return grown
