"""Initial weights that copy: what they do before any training, and that they stay a plain model."""

from __future__ import annotations

import pytest
import torch
from training_fixtures import TINY, catalog_tokenizer

from toolguard.calibration.training.architecture import FAMILIES, Shape, build_agent


@torch.inference_mode()
def copied(shape, seed=0):
    """Return the share of tokens of a repeated random sequence that the model foresees."""
    torch.manual_seed(seed)
    model = build_agent(catalog_tokenizer(), shape).eval()
    once = torch.randint(0, 4000, (4, 60))
    twice = torch.cat([once, once], dim=1)
    chosen = model(twice).logits[:, 60:-1].argmax(-1)
    return (chosen == twice[:, 61:]).float().mean().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_agent_repeats_what_followed(family):
    """Of random tokens seen once, an untrained agent foresees many; chance is one in 4,096."""
    assert copied(Shape(width=256, layers=4, family=family)) > 0.3


def test_a_tiny_agent_starts_the_same_way():
    """The start needs two blocks and works at any width that the heads divide."""
    assert copied(TINY) > 0.05


def test_the_start_is_repeatable():
    """The same random state gives the same weights."""
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_agent(catalog_tokenizer(), TINY))
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
