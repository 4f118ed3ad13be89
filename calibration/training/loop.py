"""The training loop: cosine schedule, dropout by hooks, averaged weights.

Every step's data and dropout depend on the seed and the step alone, so a run that goes on from its
checkpoint repeats an unbroken one.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from toolguard.calibration.training.examples import Pool
from toolguard.calibration.training.optimizer import BlockOptimizer
from toolguard.calibration.training.packing import NAME, Mix, PackedBatch, RowBuilder, packed_hidden

ROW_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a run.

    Args:
        length: its length in the unit that all stages of the recipe share.
        shares: pool name -> relative share of rows.
        mix: how rows are drawn.
        own: pool name -> how its rows are drawn instead.
        dropout: probability on attention and MLP outputs and on embeddings.
        rate: factor on the recipe's learning rate.
    """

    length: int
    shares: tuple[tuple[str, float], ...]
    mix: Mix
    own: tuple[tuple[str, Mix], ...] = ()
    dropout: float = 0.1
    rate: float = 1.0


_FEW = (("made_up", 0.4), ("snips", 0.6))
_ALL = (
    ("made_up", 0.14),
    ("catalog", 0.38),
    ("snips", 0.08),
    ("clinc150", 0.20),
    ("hwu64", 0.20),
)
_OWN_FIRST = (
    ("made_up", 0.05),
    ("catalog", 0.47),
    ("snips", 0.08),
    ("clinc150", 0.18),
    ("hwu64", 0.22),
)
# Made-up tools teach to read names and values off the prompt, so their calls are always whole.
_READ = (("made_up", Mix(names_only=0.0, undescribed=1.0, silent=0.1, values=0.0, arguments=0.9)),)
_NAMES = Mix(
    budget=512,
    names_only=0.5,
    undescribed=0.5,
    cut=1.0,
    cut_own=1.0,
    silent=0.12,
    values=0.5,
    arguments=0.3,
    noise=0.15,
    results=0.0,
)
_CALLS = Mix(
    budget=1024,
    names_only=0.15,
    undescribed=0.45,
    cut=0.4,
    cut_own=0.3,
    silent=0.2,
    values=0.4,
    arguments=0.5,
    noise=0.35,
    results=0.07,
)
# Long rows: menus of twenty full definitions fit only here.
_WHOLE = Mix(
    budget=2048,
    names_only=0.05,
    undescribed=0.25,
    cut=0.2,
    cut_own=0.1,
    silent=0.22,
    values=0.3,
    arguments=0.7,
    noise=0.5,
    results=0.1,
)
# Few tools first: with all names at once, choosing among them begins late. No dropout at first:
# the copying that the first weights bring is lost with it. Arguments of other than made-up tools
# come later: from the start, they crowd out the names. Words are left out more as less is left to
# learn from whole queries.
STAGES = (
    Stage(length=250, shares=_FEW, mix=_NAMES, own=_READ, dropout=0.0),
    Stage(length=750, shares=_ALL, mix=_NAMES, own=_READ, dropout=0.05),
    Stage(length=2000, shares=_ALL, mix=_NAMES, own=_READ, dropout=0.05, rate=1.2),
    Stage(length=2300, shares=_ALL, mix=_CALLS, own=_READ, rate=1.4),
    Stage(length=2700, shares=_OWN_FIRST, mix=_WHOLE, own=_READ, rate=2.2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a training run besides data and model size.

    Args:
        steps: optimiser steps.
        rows: packed rows of 1,024 tokens a step; a stage of shorter rows draws more of them, one of
            longer rows fewer.
        rate: peak learning rate.
        decay: weight decay.
        average: decay of the exponential moving average of the weights, which is what ships.
        seed: fixes weights, data order and dropout.
        stages: what is drawn when.
    """

    steps: int = 8000
    rows: int = 4
    rate: float = 1.6e-3
    decay: float = 0.1
    average: float = 0.998
    warmup: int = 100
    seed: int = 0
    stages: tuple[Stage, ...] = STAGES

    def stage_at(self, step: int) -> Stage:
        """Return the stage that `step` belongs to."""
        return next(stage for stage, end in self._ends() if step < end)

    def _ends(self) -> list[tuple[Stage, int]]:
        """Return the stages with the step at which each ends."""
        total = sum(stage.length for stage in self.stages)
        lengths = itertools.accumulate(stage.length for stage in self.stages)
        ends = [self.steps * length // total for length in lengths]
        return list(zip(self.stages, ends, strict=True))

    def rate_at(self, step: int) -> float:
        """Return the learning rate at `step`: warm-up, then cosine, times the stage's factor."""
        warmup = max(1, min(self.warmup, self.steps // 10))
        peak = self.rate * self.stage_at(min(step, self.steps - 1)).rate
        if step < warmup:
            return peak * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def packed_loss(model: PreTrainedModel, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Return the weighted mean cross-entropy and the accuracy at names' first tokens, scalars."""
    hidden = packed_hidden(model, batch)
    weights = batch.weights[:, 1:]
    picked = weights > 0
    logits = model.lm_head(hidden[:, :-1][picked]).float()  # (targets, vocab)
    targets, weights = batch.ids[:, 1:][picked], weights[picked]
    losses = functional.cross_entropy(logits, targets, reduction="none")
    opens = picked & (batch.weights[:, 1:] == NAME) & (batch.weights[:, :-1] != NAME)
    named = opens[picked]
    right = (logits.argmax(-1) == targets)[named]
    return (losses * weights).sum() / weights.sum(), right.float().mean()


@contextmanager
def dropout_on(model: PreTrainedModel, probability: float) -> Iterator[None]:
    """Drop features of embedding, attention and MLP outputs while training.

    Qwen3 itself has dropout on attention weights only. One mask serves all positions of a row,
    which costs a thousandth of the random numbers.

    Source: Gal & Ghahramani (2016), "A theoretically grounded application of dropout in recurrent
        neural networks".
    """

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        if not module.training:
            return output
        hidden = output[0] if isinstance(output, tuple) else output  # (rows, length, width)
        ones = torch.ones(
            hidden.shape[0], 1, hidden.shape[2], dtype=hidden.dtype, device=hidden.device
        )
        hidden = hidden * functional.dropout(ones, probability)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    sites: list[nn.Module] = [model.model.embed_tokens]
    for block in model.model.layers:
        sites += [block.self_attn, block.mlp]
    handles = [site.register_forward_hook(drop) for site in sites if probability]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class AveragedWeights:
    """Exponential moving average of a model's parameters, in float32."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone().float() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the model; the decay warms up, so early steps are forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in model.named_parameters():
            self.values[name].lerp_(p.detach().float(), 1 - decay)

    def copy_to(self, model: nn.Module) -> None:
        """Give the model the averaged weights for good."""
        _set_parameters(model, self.values)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights for the duration of the block."""
        kept = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.copy_to(model)
        try:
            yield
        finally:
            _set_parameters(model, kept)


@torch.no_grad()
def _set_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, p in model.named_parameters():
        p.copy_(values[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What is looked at while a run goes on, always with the averaged weights in the model.

    Args:
        evaluate: further readings for the log.
        evaluate_every: steps between those.
        keep: called with the number of steps done, where that is one of `keep_at`.
        keep_at: numbers of steps, 0 among them for the untrained model.
    """

    evaluate: Callable[[], dict[str, float]] | None = None
    evaluate_every: int = 500
    keep: Callable[[int], None] | None = None
    keep_at: frozenset[int] = frozenset()


_UNWATCHED = Watch()


class Trainer:
    """One run in one folder, which goes on where it stopped.

    Args:
        model: trained in place.
        builder: makes rows.
        pools: what rows are drawn from, by the recipe's shares.
        recipe: schedule and seed.
        folder: gets `log.jsonl` and `checkpoint.pt`.
        watch: what is looked at on the way.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        builder: RowBuilder,
        pools: Sequence[Pool],
        recipe: Recipe,
        folder: Path,
        watch: Watch = _UNWATCHED,
    ) -> None:
        self.model, self.builder, self.recipe, self.folder = model, builder, recipe, folder
        self.pools = {pool.name: pool for pool in pools}
        self.optimizer = BlockOptimizer(model, rate=recipe.rate, decay=recipe.decay)
        self.average = AveragedWeights(model, recipe.average)
        self.watch = watch
        self.step = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        """Where the run's state is kept."""
        return self.folder / "checkpoint.pt"

    def shares_of(self, stage: Stage) -> list[tuple[Pool, float]]:
        """Return the stage's pools with their shares; all pools alike if the run has none."""
        found = [(self.pools[name], share) for name, share in stage.shares if name in self.pools]
        return found or [(pool, 1.0) for pool in self.pools.values()]

    def resume(self) -> None:
        """Load the last checkpoint if there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.values = state["average"]
        self.step, self.seconds, self.cpu_seconds = (
            state["step"],
            state["seconds"],
            state["cpu_seconds"],
        )

    def save(self) -> None:
        """Write the run's state atomically."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.values,
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def run(self) -> None:
        """Train to the recipe's last step, then leave the averaged weights in the model."""
        self.resume()
        started = time.monotonic() - self.seconds
        cpu_started = time.process_time() - self.cpu_seconds
        device = self.model.device
        self.model.train()
        if not self.step:
            self._keep()
        while self.step < self.recipe.steps:
            with dropout_on(self.model, self.recipe.stage_at(self.step).dropout):
                loss, accuracy = self._one_step(device)
            self.step += 1
            self.seconds = time.monotonic() - started
            self.cpu_seconds = time.process_time() - cpu_started
            self._report(loss, accuracy)
            self._keep()
        self.save()
        self.average.copy_to(self.model)
        self.model.eval()

    def _one_step(self, device: torch.device) -> tuple[float, float]:
        # Data and dropout depend on (seed, step) alone, so a resumed run repeats an unbroken one.
        rng = Random(f"{self.recipe.seed}:{self.step}")
        torch.manual_seed(rng.getrandbits(32))
        stage = self.recipe.stage_at(self.step)
        pools, shares = zip(*self.shares_of(stage), strict=True)
        rows = max(1, self.recipe.rows * ROW_TOKENS // stage.mix.budget)
        batch = self.builder.batch(
            lambda: rng.choices(pools, shares)[0], rng, rows, stage.mix, dict(stage.own)
        )
        batch = batch.to(device)
        self.optimizer.set_rate(self.recipe.rate_at(self.step))
        with torch.autocast(device.type, torch.bfloat16):
            loss, accuracy = packed_loss(self.model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.model, self.step)
        return loss.item(), accuracy.item()

    def _keep(self) -> None:
        if self.watch.keep is not None and self.step in self.watch.keep_at:
            with self.average.applied_to(self.model):
                self.watch.keep(self.step)

    def _report(self, loss: float, accuracy: float) -> None:
        line: dict[str, Any] = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "loss": round(loss, 4),
            "name_accuracy": round(accuracy, 4),
        }
        last = self.step == self.recipe.steps
        evaluate = self.watch.evaluate
        if evaluate is not None and (self.step % self.watch.evaluate_every == 0 or last):
            self.model.eval()
            with self.average.applied_to(self.model):
                line |= evaluate()
            self.model.train()
        if self.step % 20 == 0 or last:
            with (self.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if self.step % 200 == 0:
            self.save()
