"""The optimiser of training: which parameters it moves how, and that a run can go on."""

from __future__ import annotations

import copy

import torch
from training_fixtures import TINY, catalog_tokenizer

from toolguard.calibration.training.architecture import build_agent
from toolguard.calibration.training.optimizer import BlockOptimizer


def model_with_gradients():
    """A tiny agent with the gradients of one batch of random tokens."""
    torch.manual_seed(0)
    model = build_agent(catalog_tokenizer(), TINY)
    learn(model, seed=1)
    return model


def learn(model, *, seed):
    torch.manual_seed(seed)
    ids = torch.randint(0, 300, (2, 12))
    model(input_ids=ids, labels=ids).loss.backward()


def moved(before, model):
    return {name: bool((p != before[name]).any()) for name, p in model.named_parameters() if p.ndim}


def test_every_parameter_is_moved_and_gradients_are_forgotten():
    """Matrices of the blocks, embeddings and norms all learn."""
    model = model_with_gradients()
    optimizer = BlockOptimizer(model, rate=1e-3, decay=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    assert all(moved(before, model).values())
    assert all(p.grad is None for p in model.parameters())


def test_a_rate_of_nothing_moves_nothing():
    """The rate that is set holds for all parameters."""
    model = model_with_gradients()
    optimizer = BlockOptimizer(model, rate=1e-3, decay=0.1)
    optimizer.set_rate(0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    assert not any(moved(before, model).values())


def test_a_run_goes_on_from_its_state():
    """Two steps in one go, and two with saving and loading between them, end alike."""
    whole = model_with_gradients()
    optimizer = BlockOptimizer(whole, rate=1e-3, decay=0.1)
    optimizer.step()
    parted = copy.deepcopy(whole)
    second = BlockOptimizer(parted, rate=1e-3, decay=0.1)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, its in ((whole, optimizer), (parted, second)):
        learn(model, seed=2)
        its.step()
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(one, other)
