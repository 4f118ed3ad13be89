"""The training loop: it learns, logs, stops and goes on as if it had never stopped."""

from __future__ import annotations

import itertools
import json
from random import Random
from types import SimpleNamespace

import pytest
import torch
from training_fixtures import catalog_tokenizer, tiny_agent

from toolguard.calibration.training.catalog import load_catalog
from toolguard.calibration.training.examples import Example, catalog_pool
from toolguard.calibration.training.held_out import draw_cases, right_names
from toolguard.calibration.training.loop import (
    AveragedWeights,
    Recipe,
    Stage,
    Trainer,
    Watch,
    dropout_on,
    packed_loss,
)
from toolguard.calibration.training.packing import Mix, RowBuilder, conversation
from toolguard.guard.tools import ToolCall

# Rows of 512 tokens: `rows=1` draws two.
STAGE = Stage(length=1, shares=(("catalog", 0.34),), mix=Mix(budget=512))


@pytest.fixture(scope="module")
def builder():
    return RowBuilder(catalog_tokenizer(), load_catalog().refusals)


def trainer(folder, builder, steps, **options):
    recipe = Recipe(steps=steps, rows=1, warmup=5, rate=5e-3, stages=(STAGE,))
    return Trainer(tiny_agent(), builder, [catalog_pool()], recipe, folder, **options)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class StopError(Exception):
    """What ends a run in the middle."""


class Interrupted(Trainer):
    """A run that is stopped from outside after some steps."""

    def _report(self, loss, accuracy):
        super()._report(loss, accuracy)
        if self.step == 7:
            self.save()
        if self.step == 9:  # two steps that the checkpoint does not hold
            raise StopError


def test_loss_goes_down(tmp_path, builder):
    """Thirty steps of a tiny agent lower the loss on rows it did not see, and are logged."""
    pool = catalog_pool()
    batch = builder.batch(lambda: pool, Random("other"), 2)
    run = trainer(tmp_path, builder, 30)
    before, _ = packed_loss(run.model, batch)
    run.run()
    after, _ = packed_loss(run.model, batch)
    assert after < 0.75 * before


def test_the_log_holds_loss_and_accuracy(tmp_path, builder):
    """Every twentieth step and the last one leave a line; readings are on the averaged weights."""
    model = {}

    def evaluate():
        model.update(weights(run.model))
        assert not run.model.training
        return {"held_out_catalog": 0.25}

    run = trainer(tmp_path, builder, 22, watch=Watch(evaluate=evaluate, evaluate_every=10))
    run.run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 22]
    for line in lines:
        assert line["loss"] > 0
        assert 0 <= line["name_accuracy"] <= 1
        assert line["held_out_catalog"] == 0.25
    assert all(torch.equal(p, run.average.values[name]) for name, p in model.items())


def test_a_resumed_run_equals_an_unbroken_one(tmp_path, builder):
    """A run that is stopped and started again ends with bit-identical weights."""
    whole = trainer(tmp_path / "whole", builder, 12)
    whole.run()
    recipe = whole.recipe
    with pytest.raises(StopError):
        Interrupted(tiny_agent(), builder, [catalog_pool()], recipe, tmp_path / "cut").run()
    # Other initial weights: all that counts is in the checkpoint.
    rest = Trainer(tiny_agent(seed=9), builder, [catalog_pool()], recipe, tmp_path / "cut")
    rest.run()
    assert rest.step == 12
    found, wanted = weights(rest.model), weights(whole.model)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_finished_run_is_not_trained_again(tmp_path, builder):
    """Starting a finished run leaves its weights as they are."""
    first = trainer(tmp_path, builder, 3)
    first.run()
    again = trainer(tmp_path, builder, 3)
    again.run()
    found, wanted = weights(again.model), weights(first.model)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_seed_decides_the_run(tmp_path, builder):
    """Runs with different seeds draw different rows."""
    losses = []
    for seed in (0, 1):
        recipe = Recipe(steps=1, rows=1, seed=seed)
        Trainer(tiny_agent(), builder, [catalog_pool()], recipe, tmp_path / str(seed)).run()
        losses.append(json.loads((tmp_path / str(seed) / "log.jsonl").read_text())["loss"])
    assert losses[0] != losses[1]


def test_pools_are_drawn_by_the_shares_of_those_given(tmp_path, builder):
    """A stage draws from the pools that the run has; with none of its own, from all of them."""
    run = trainer(tmp_path, builder, 1)
    mixed = Stage(length=1, shares=(("catalog", 0.2), ("snips", 0.8)), mix=Mix())
    human = Stage(length=1, shares=(("snips", 1.0),), mix=Mix())
    drawn = [[(pool.name, s) for pool, s in run.shares_of(stage)] for stage in (mixed, human)]
    assert drawn == [[("catalog", 0.2)], [("catalog", 1.0)]]


def test_stages_follow_one_another():
    """Every step of a run has a stage, and each stage has steps, in order."""
    recipe = Recipe(steps=100)
    stages = [recipe.stage_at(step) for step in range(100)]
    assert list(dict.fromkeys(stages)) == list(recipe.stages)
    assert len(stages) == 100


def test_the_rate_warms_up_and_falls():
    """The learning rate rises linearly to its peak and falls to 2 % of it."""
    recipe = Recipe(steps=100, warmup=10, rate=1.0, stages=(STAGE,))
    assert recipe.rate_at(0) == pytest.approx(0.1)
    assert recipe.rate_at(10) == pytest.approx(1.0)
    assert recipe.rate_at(55) == pytest.approx(0.51)
    assert recipe.rate_at(100) == pytest.approx(0.02)


def test_dropout_acts_in_training_only_and_leaves_no_hooks():
    """Dropout changes what a training model computes, and nothing after the block."""
    model, ids = tiny_agent(), torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        plain = model(ids).logits
        with dropout_on(model, 0.5):
            assert torch.equal(model(ids).logits, plain)
            model.train()
            assert not torch.equal(model(ids).logits, plain)
        assert torch.equal(model(ids).logits, plain)


def test_averaged_weights_follow_the_model():
    """The average moves a step's share towards the model and is lent, not given away."""
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = AveragedWeights(model, decay=0.9)
    model.weight.data.fill_(1.0)
    average.update(model, step=1000)
    assert average.values["weight"].item() == pytest.approx(0.1)
    with average.applied_to(model):
        assert model.weight.item() == pytest.approx(0.1)
    assert model.weight.item() == 1.0
    average.copy_to(model)
    assert model.weight.item() == pytest.approx(0.1)


def test_right_names_counts_whole_names(builder):
    """A query counts as right iff each token of its name is the model's first choice."""
    model = tiny_agent()
    cases = draw_cases(catalog_pool("test"), size=4, count=40, seed=0)
    right, total = right_names(model, builder, cases, rows=3)
    assert total == 40
    one_by_one = 0
    for case in cases:
        for example in case.examples:
            one_by_one += name_is_first_choice(model, builder, case.menu, example)
    assert right == one_by_one


@torch.inference_mode()
def name_is_first_choice(model, builder, menu, example):
    call = ToolCall(name=example.call.name, arguments=example.call.arguments)
    segments = conversation(Example(query=example.query, call=call), "")
    ids, weight = builder.encode(segments)
    prompt = builder.menu_ids(menu)
    with torch.autocast("cpu", torch.bfloat16):
        chosen = model(torch.tensor([[*prompt, *ids]])).logits[0].argmax(-1)[len(prompt) - 1 :]
    return all(chosen[at] == ids[at] for at, w in enumerate(weight) if w == 1.0)


def test_right_names_of_a_model_that_says_one_name(builder):
    """A model that always writes the same name is right exactly where that is the name."""
    cases = draw_cases(catalog_pool("test"), size=4, count=40, seed=0)
    wanted = cases[0].examples[0].call.name
    ids = builder.tokenizer(f'{wanted}", "', add_special_tokens=False)["input_ids"]
    model = Parrot(ids, catalog_size=len(builder.tokenizer))
    right, total = right_names(model, builder, cases)
    assert total == 40
    assert right == sum(e.call.name == wanted for case in cases for e in case.examples)


class Parrot(torch.nn.Module):
    """Predicts, after each token of a sequence, its next; after anything else, its first."""

    device = torch.device("cpu")
    config = SimpleNamespace(_attn_implementation="sdpa")

    def __init__(self, ids, catalog_size):
        super().__init__()
        follow = torch.full((catalog_size,), ids[0])
        for token, after in itertools.pairwise(ids):
            follow[token] = after
        self.follow, self.size = follow, catalog_size

    def model(self, *, input_ids, **_):
        return type("Output", (), {"last_hidden_state": input_ids[..., None]})

    def lm_head(self, hidden):
        return torch.nn.functional.one_hot(self.follow[hidden[:, 0]], self.size)
