"""Training the reference agent end to end: data, tokenizer, model, loop, the folder that ships."""

from __future__ import annotations

import copy
import ctypes
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from toolguard.calibration.training.architecture import (
    DEFAULT_SHAPE,
    Shape,
    build_agent,
    train_tokenizer,
)
from toolguard.calibration.training.catalog import Catalog, load_catalog
from toolguard.calibration.training.examples import (
    HUMAN_SOURCES,
    TRAINING_TENTHS,
    Example,
    Pool,
    catalog_pool,
    human_pools,
)
from toolguard.calibration.training.facts import TRAINING_FILE
from toolguard.calibration.training.held_out import Case, draw_cases, right_names
from toolguard.calibration.training.loop import Recipe, Trainer, Watch
from toolguard.calibration.training.made_up import made_up_pool
from toolguard.calibration.training.optimizer import OPTIMIZER
from toolguard.calibration.training.packing import RowBuilder

MENU_SIZES = {"catalog": 10, "snips": 7, "clinc150": 15, "hwu64": 16}
TOKENIZER_DRAWS = 400  # expansions a tool that the tokenizer is trained on
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks: a training step on two cores became up to twice as fast."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**28)


def tokenizer_texts(pools: Sequence[Pool], catalog: Catalog, seed: int) -> Iterator[str]:
    """Yield what the tokenizer learns from: names, descriptions, queries and arguments."""
    rng = Random(seed)
    yield from ["user system assistant name arguments Done"] * 200
    yield from catalog.refusals
    for pool in pools:
        for name, tool in pool.tools.items():
            yield from [name] * 20
            yield tool.description
            yield " ".join(tool.parameters.get("properties", {}))
            for example in pool.examples[name] or _draws(pool, name, rng):
                yield example.query
                yield example.query.lower()
                arguments = dict(example.call.arguments) if example.call else {}
                yield json.dumps(arguments, ensure_ascii=False)


def _draws(pool: Pool, name: str, rng: Random) -> list[Example]:
    return [pool.draw_example(name, rng) for _ in range(TOKENIZER_DRAWS)]


def training_pools(
    data: Path | None, tenths: Sequence[int], held_out_tenths: Sequence[int] = ()
) -> list[Pool]:
    """Return the catalogue and, where `data` is given, the human-written queries of `tenths`.

    Args:
        data: folder of the human-written sources.
        tenths: which of their records.
        held_out_tenths: the catalogue's training templates of these tenths are left out.
    """
    humans = human_pools(data, tenths) if data else []
    kept = [tenth for tenth in range(10) if tenth not in held_out_tenths]
    return [catalog_pool("train", kept), *humans]


def held_out_cases(
    data: Path | None, tenths: Sequence[int], count: int, seed: int
) -> dict[str, list[Case]]:
    """Return queries to read progress on, by pool name.

    With tenths, what a choice of recipe may look at: their training templates and human queries.
    Without, test frames of the catalogue, which must not choose anything.
    """
    own = catalog_pool("train", tenths) if tenths else catalog_pool("test")
    pools = [own, *(human_pools(data, tenths) if data and tenths else [])]
    return {
        pool.name: draw_cases(pool, size=MENU_SIZES[pool.name], count=count, seed=seed)
        for pool in pools
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """What is looked at while an agent learns.

    Args:
        held_out: queries a source in the progress reading.
        held_out_tenths: tenths that nothing is learned from and progress is read on, so that a
            recipe can be chosen; if empty, progress is read on test frames of the catalogue.
        keep_at: numbers of steps after which the agent as it is then is kept, in `out/steps/N`.
    """

    held_out: int = 400
    held_out_tenths: tuple[int, ...] = ()
    keep_at: tuple[int, ...] = ()


_LOOKS = Looks()


def train_agent(
    out: Path,
    recipe: Recipe,
    *,
    data: Path | None,
    tenths: Sequence[int] = tuple(range(TRAINING_TENTHS)),
    device: str = "cpu",
    shape: Shape = DEFAULT_SHAPE,
    looks: Looks = _LOOKS,
) -> Path:
    """Return the folder of the trained agent, `out/agent`; a run that was interrupted goes on.

    Args:
        out: run folder: log, checkpoint, agent.
        recipe: schedule and seed.
        data: folder with snips/, hwu64/ and clinc150/; None trains on the catalogue alone.
        tenths: which tenths of the human records to learn from, by the hash of their id.
        device: torch device.
        shape: size of the model.
        looks: what is read and kept on the way.

    Raises:
        DatasetError: if `data` lacks a source.
    """
    keep_freed_memory()
    torch.manual_seed(recipe.seed)
    catalog = load_catalog()
    learned = [tenth for tenth in tenths if tenth not in looks.held_out_tenths]
    pools = training_pools(data, learned, looks.held_out_tenths)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(out, pools, catalog, recipe.seed)
    model = build_agent(tokenizer, shape)
    nn.Module.to(model, torch.device(device))  # the model's own `to` has no annotations
    builder = RowBuilder(tokenizer, catalog.refusals)
    cases = held_out_cases(data, looks.held_out_tenths, looks.held_out, recipe.seed)

    def evaluate() -> dict[str, float]:
        counts = {name: right_names(model, builder, drawn) for name, drawn in cases.items()}
        return {
            f"held_out_{name}": round(right / total, 4) for name, (right, total) in counts.items()
        }

    def keep(step: int) -> None:
        facts = _facts(trainer, data, learned) | {"steps_done": step}
        _ship(copy.deepcopy(model), tokenizer, out / "steps" / str(step), facts)

    watch = Watch(evaluate=evaluate, keep=keep, keep_at=frozenset(looks.keep_at))
    drawn = [*pools, made_up_pool(recipe.seed)]
    trainer = Trainer(model, builder, drawn, recipe, out, watch)
    trainer.run()
    return _ship(model, tokenizer, out / "agent", _facts(trainer, data, learned))


def _tokenizer(
    out: Path, pools: Sequence[Pool], catalog: Catalog, seed: int
) -> PreTrainedTokenizerFast:
    folder = out / "tokenizer"
    if folder.exists():
        loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
        return loaded
    tokenizer = train_tokenizer(tokenizer_texts(pools, catalog, seed))
    tokenizer.save_pretrained(folder)
    return tokenizer


def _facts(trainer: Trainer, data: Path | None, tenths: Sequence[int]) -> dict[str, object]:
    sources = (
        {name: _file_hash(data / name / "records.jsonl") for name in HUMAN_SOURCES} if data else {}
    )
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "recipe": asdict(trainer.recipe),
        "tenths": list(tenths),
        "records_sha256": sources,
        "seconds": round(trainer.seconds),
        "cpu_seconds": round(trainer.cpu_seconds),
        "optimizer": OPTIMIZER,
        "device": str(trainer.model.device),
        "threads": torch.get_num_threads(),
    }


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _ship(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    facts: dict[str, object],
) -> Path:
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / TRAINING_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder
