"""Directions: what each vector is, at which length, and what happens without a mean."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from fakes import fake_profile

from toolguard.adapters.loading import wrap_model
from toolguard.adapters.wire import get_format
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.prompts import PromptWriter
from toolguard.calibration.steering_lab.directions import (
    DIRECTIONS,
    Directions,
    norm_gain,
    norms_of,
)
from toolguard.calibration.steering_lab.pairs import Pair
from toolguard.calibration.steering_lab.state_means import MeanSums, StateMeans
from toolguard.guard.errors import ConfigError

LAYER = 1


@pytest.fixture(scope="module")
def pair(tiny_loaded, tiny_menu):
    """Give a pair whose names part at the first token."""
    return pair_of(tiny_loaded, tiny_menu, "get_time", "send_email")


@pytest.fixture(scope="module")
def colliding(tiny_loaded, tiny_menu):
    """Give a pair whose names share their first token."""
    return pair_of(tiny_loaded, tiny_menu, "get_time", "get_weather")


def pair_of(loaded, menu, source, target):
    made = Record(
        id="r", source="s", split="t", query="q", tools=menu.tools, call={"name": source}
    ).with_menu(menu)
    group = PromptWriter(loaded, get_format("hermes")).write([made], None)
    return Pair(
        number=3, shared=group.shared, prompt=group.prompts[0], source=source, target=target
    )


@pytest.fixture(scope="module")
def means(tiny_loaded, tiny_menu):
    return StateMeans.of_profile(fake_profile(tiny_loaded, tiny_menu, layer=LAYER))


@pytest.fixture(scope="module")
def directions(tiny_loaded, means):
    return Directions(tiny_loaded, means, seed=0)


def vector(directions, pair, direction, norm="natural"):
    return directions.vector(pair.at_decision(), LAYER, direction, norm)


def test_the_mean_difference_goes_from_source_to_target(directions, means, pair):
    """Added to the source's mean it is the target's."""
    reached = means.mean((), "get_time", LAYER) + vector(directions, pair, "mean_difference")
    torch.testing.assert_close(reached, means.mean((), "send_email", LAYER))


@pytest.mark.parametrize("direction", [d for d in DIRECTIONS if "matched" in norms_of(d)])
def test_a_matched_direction_has_the_mean_differences_length(directions, pair, direction):
    """What is compared at one length has it."""
    wanted = torch.linalg.vector_norm(vector(directions, pair, "mean_difference"))
    found = torch.linalg.vector_norm(vector(directions, pair, direction, "matched"))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("prefix", ["", "gained_"])
def test_the_two_parts_are_the_whole_and_stand_upright(directions, pair, prefix):
    """Parallel and orthogonal add up to the mean difference; only the first has the row in it."""
    row = vector(directions, pair, "gained_row" if prefix else "unembedding_row")
    along, across = (vector(directions, pair, f"{prefix}{p}") for p in ("parallel", "orthogonal"))
    torch.testing.assert_close(along + across, vector(directions, pair, "mean_difference"))
    assert abs(float(across @ row)) < 1e-4
    assert abs(float(torch.nn.functional.cosine_similarity(along, row, dim=0))) > 1 - 1e-5


def test_the_normalised_difference_pushes_every_pair_equally_far(
    directions, tiny_loaded, tiny_menu, pair
):
    """Its length is the mean separation, its way the pair's own."""
    other = pair_of(tiny_loaded, tiny_menu, "search", "get_time")
    one, two = (vector(directions, p, "normalised_mean_difference") for p in (pair, other))
    torch.testing.assert_close(torch.linalg.vector_norm(one), torch.linalg.vector_norm(two))
    way = vector(directions, pair, "mean_difference")
    assert float(torch.nn.functional.cosine_similarity(one, way, dim=0)) > 1 - 1e-5


def test_a_first_token_that_two_names_share_has_no_row_difference(directions, colliding):
    """At the decision token the row is zero, at any norm; where the names part it is not."""
    assert not vector(directions, colliding, "unembedding_row").any()
    assert not vector(directions, colliding, "unembedding_row", "matched").any()
    (parting,) = colliding.contests()
    assert parting.opening == colliding.common != ()
    assert directions.vector(parting, LAYER, "unembedding_row", "matched").any()


def test_without_a_mean_there_is_no_direction(tiny_loaded, tiny_menu, pair, colliding):
    """What needs a mean that is missing is None; a matched row does with the decision's means."""
    profile = fake_profile(tiny_loaded, tiny_menu, layer=LAYER, uncalibrated=["send_email"])
    directions = Directions(tiny_loaded, StateMeans.of_profile(profile), seed=0)
    assert vector(directions, pair, "mean_difference") is None
    assert vector(directions, pair, "unembedding_row", "matched") is None
    assert vector(directions, pair, "unembedding_row") is not None
    (parting,) = colliding.contests()
    assert directions.vector(parting, LAYER, "mean_difference", "natural") is None
    assert directions.vector(parting, LAYER, "gained_row", "matched") is not None


def test_a_third_tool_that_shares_the_targets_first_token_is_a_contest(
    pair, tiny_loaded, tiny_menu
):
    """A target that begins like others is won token by token; one that does not, at once."""
    assert [contest.rivals for contest in pair.contests()] == [("get_time",)]
    crowded = pair_of(tiny_loaded, tiny_menu, "send_email", "get_weather")
    assert [contest.rivals for contest in crowded.contests()] == [("send_email",), ("get_time",)]


def test_noise_hangs_on_pair_and_seed_alone(tiny_loaded, means, pair):
    """The same pair gets the same noise at every layer and run, and another seed another one."""
    one, two, three = (Directions(tiny_loaded, means, seed=seed) for seed in (0, 0, 1))
    first = vector(one, pair, "random", "matched")
    assert torch.equal(first, vector(two, pair, "random", "matched"))
    assert not torch.equal(first, vector(three, pair, "random", "matched"))


def test_shuffled_means_are_those_of_other_tools(directions, means, pair):
    """The control goes between two tools of which neither is the one it stands for."""
    found = vector(directions, pair, "shuffled_means")
    rows = {name: means.mean((), name, LAYER) for name in means.tools}
    named = [
        (source, target)
        for source in rows
        for target in rows
        if source != target and torch.allclose(rows[target] - rows[source], found)
    ]
    ((source, target),) = named
    assert source != "get_time"
    assert target != "send_email"


def test_two_tools_cannot_be_shuffled(tiny_loaded, means, pair):
    """With fewer than three tools there is no other pair, so there is no such control."""
    rows = {key: row for key, row in means.rows.items() if key[1] in {"get_time", "send_email"}}
    few = StateMeans(layers=means.layers, rows=rows, counts=dict.fromkeys(rows, 3))
    assert vector(Directions(tiny_loaded, few, seed=0), pair, "shuffled_means") is None


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "gpt2"])
def test_the_gain_is_what_the_norm_multiplies_by(family, tiny_tokenizer):
    """RMSNorm's g, Gemma's 1 + g and LayerNorm's weight beside its bias are all measured."""
    model = tiny_models.tiny_model(family, vocab_size=len(tiny_tokenizer))
    view = wrap_model(model, tiny_tokenizer).view
    with torch.no_grad():
        drawn = torch.linspace(-0.5, 2.0, view.hidden_size)
        view.final_norm.weight.copy_(drawn)
        if getattr(view.final_norm, "bias", None) is not None:
            view.final_norm.bias.fill_(0.7)
    wanted = drawn + 1 if family == "gemma3_text" else drawn
    torch.testing.assert_close(
        norm_gain(view.final_norm, view.unembedding), wanted, atol=1e-3, rtol=1e-3
    )


def test_sums_give_means_of_what_was_added_often_enough(tiny_loaded, tiny_menu):
    """A mean of too few calls is none; the profile's own replaces one at its layer alone."""
    sums = MeanSums(layers=(0, LAYER))
    width = tiny_loaded.view.hidden_size
    for value in (1.0, 3.0):
        sums.add((), "search", torch.full((2, width), value))
    sums.add((7,), "search", torch.zeros(2, width))
    found = sums.means(2)
    assert found.tools == ("search",)
    assert found.counts == {((), "search"): 2}
    assert float(found.mean((), "search", 0)[0]) == 2.0
    assert found.mean((7,), "search", 0) is None
    profile = fake_profile(tiny_loaded, tiny_menu, layer=LAYER)
    own = found.with_profile(profile)
    place = profile.names.index("search")
    assert torch.equal(own.mean((), "search", LAYER), profile.means[place])
    assert torch.equal(own.mean((), "search", 0), found.mean((), "search", 0))
    with pytest.raises(ConfigError, match="layer 2 was not read"):
        found.mean((), "search", 2)
