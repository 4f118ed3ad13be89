"""Records and a model for tests of whole commands: a random model, labelled by its own choices."""

from __future__ import annotations

import json
import random

import tiny_models
import torch
from transformers import AutoModelForCausalLM

from toolguard.adapters.loading import load_model
from toolguard.adapters.wire import get_format
from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.collect import collect

NAMES = ("get_weather", "get_time", "search", "searchWeb", "send_email")
WORDS = "rain sun Rome Paris alarm taxi mail news flight hotel seven today song book lamp door"


def query(rng):
    return " ".join(rng.choice(WORDS.split()) for _ in range(9))


def tools(names):
    return [{"name": name, "description": f"Do {name}."} for name in names]


def unlabelled(count, seed, names=NAMES, menu_size=2):
    """Records under small menus, so that even a random model does not always choose one tool."""
    rng = random.Random(seed)
    return [
        {
            "id": f"s{seed}-{i}",
            "source": "made",
            "split": "all",
            "query": query(rng),
            "tools": tools(rng.sample(names, menu_size)),
            "call": None,
        }
        for i in range(count)
    ]


def labelled(folder, rows, *, wrong_every=6):
    """Label rows with what the model chooses, but every sixth with another tool."""
    loaded = load_model(str(folder))
    records = [Record.model_validate(row) for row in rows]
    skipped = []
    seen = collect(
        loaded,
        get_format("hermes"),
        records,
        layers=[0],
        on_skip=lambda record, error: skipped.append((record, error)),
    )
    by_id = {row["id"]: row for row in rows}
    for index, one in enumerate(seen):
        place = (one.chosen + (index % wrong_every == 0)) % len(one.menu_names)
        by_id[one.record_id]["call"] = {"name": one.menu_names[place], "arguments": {}}
    return rows


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def random_agent(folder):
    """Save a tiny checkpoint whose weights are large enough for its choices to differ."""
    tiny_models.save_tiny(folder)
    bigger = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in bigger.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    bigger.save_pretrained(folder)
    return folder
