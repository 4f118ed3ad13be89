"""Small stand-ins for training: a tokenizer of catalogue texts, tiny agents, made-up records."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from toolguard.calibration.training.agent import tokenizer_texts
from toolguard.calibration.training.architecture import Shape, build_agent, train_tokenizer
from toolguard.calibration.training.catalog import load_catalog
from toolguard.calibration.training.examples import catalog_pool

TINY = Shape(width=64, layers=2)

# Intents, topics and query beginnings for a data folder of our own, in the shape of the public one.
INTENTS = {
    "snips": {"PlayTune": "music", "TellForecast": "weather", "ReserveTable": "food"},
    "hwu64": {"lamp_on": "home", "lamp_off": "home", "radio_start": "audio", "radio_stop": "audio"},
    "clinc150": {"pay_rent": "money", "move_money": "money", "boil_rice": "kitchen"},
}


@functools.cache
def catalog_tokenizer():
    """Return a tokenizer trained on the catalogue's texts alone; read it, never change it."""
    return train_tokenizer(tokenizer_texts([catalog_pool("train")], load_catalog(), seed=0))


def tiny_agent(seed=0, family=TINY.family):
    """Return an untrained agent of width 64 in evaluation mode."""
    torch.manual_seed(seed)
    return build_agent(catalog_tokenizer(), replace(TINY, family=family)).eval()


def write_data(folder: Path, each: int = 24) -> Path:
    """Write snips/, hwu64/ and clinc150/ with `each` made-up queries an intent."""
    for source, intents in INTENTS.items():
        (folder / source).mkdir(parents=True)
        tools = [
            {
                "name": name,
                "description": f"Handle {name}.",
                "parameters": {"type": "object", "properties": {"thing": {"type": "string"}}},
            }
            for name in intents
        ]
        menus = {f"{source}:all": {"source": source, "tools": tools}}
        (folder / source / "menus.json").write_text(json.dumps(menus))
        records = [_record(source, *item, n) for item in intents.items() for n in range(each)]
        records += [_record(source, None, "none", n) for n in range(each)]
        lines = "\n".join(json.dumps(record) for record in records)
        (folder / source / "records.jsonl").write_text(lines)
    return folder


def _record(source, intent, topic, number):
    thing = Random(f"{source}{intent}{number}").choice(["seven", "the blue one", "Anna's", "it"])
    call = {"name": intent, "arguments": {"thing": thing}} if intent else None
    return {
        "id": f"{source}/{intent}/{number}",
        "source": source,
        "split": "train",
        "query": f"could you see to {intent or 'nothing'} for {thing} number {number}",
        "menu": f"{source}:all",
        "call": call,
        "tags": [f"scenario:{topic}"],
    }
