"""`toolguard doctor`: what the guard finds in a model, before anything is calibrated."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import click
import torch
from torch import Tensor

from toolguard.adapters.loading import LoadedModel, load_model
from toolguard.adapters.self_check import SelfCheck, self_check
from toolguard.adapters.wire import choose_format
from toolguard.calibration.command_options import json_option, model_options
from toolguard.calibration.command_output import show_result
from toolguard.guard.tools import Menu

if TYPE_CHECKING:
    from toolguard.adapters.wire.base import WireFormat

# Two names that begin alike, so that the decision token is seen not to be the first name token.
_MENU = Menu.of(
    {
        "name": name,
        "description": description,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
    for name, description in (
        ("get_weather", "Weather of a city now."),
        ("get_time", "Local time of a city now."),
    )
)
_MESSAGES = ({"role": "user", "content": "What is the weather in Rome?"},)
_TOKENS_BEFORE = 12  # as much as shows the end of the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionToken:
    """The decision token inside its text.

    Args:
        before: the text of the tokens before it, at most a dozen.
        token: its own text.
        token_id: its id.
        after: the first name of the sample menu, as it would go on.
        position: its index in prompt and forced prefix together.
    """

    before: str
    token: str
    token_id: int
    after: str
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Wall times of one sample request, in milliseconds.

    Args:
        prompt_tokens: tokens read in the first forward.
        prompt_ms: that forward.
        step_ms: one decoding step after it, with the KV cache.
    """

    prompt_tokens: int
    prompt_ms: float
    step_ms: float


@click.command()
@model_options
@json_option
def command(
    model: str,
    revision: str | None,
    wire_format: str | None,
    layers_path: str | None,
    device: str | None,
    dtype: str | None,
    json_path: str | None,
) -> None:
    """Show what toolguard finds in a model, and whether it can read it.

    Loads the model, runs a tiny forward, renders a sample request and times one decoding step.
    Fails with what to do about it if anything the guard needs is missing.
    """
    loaded = load_model(
        model, device=device, dtype=dtype, revision=revision, layers_path=layers_path
    )
    report = examine(loaded, wire_format)
    show_result(report, "\n".join(_lines(report)), json_path)


def examine(loaded: LoadedModel, wire_format: str | None = None) -> dict[str, Any]:
    """Return all that doctor reports, JSON-ready.

    Args:
        loaded: the model.
        wire_format: name of a format, or None to detect it from the chat template.

    Raises:
        ConfigError: if there is no such format.
        UnsupportedModel: if the format cannot be detected or has no decision token here.
    """
    check = self_check(loaded.view, scan_weights=False)  # load_model has scanned them
    wire = choose_format(wire_format, loaded.tokenizer)
    ids, decision = _decision(loaded, wire)
    return {
        "model": loaded.name,
        "revision": loaded.revision,
        "architecture": type(loaded.model).__name__,
        "family": loaded.view.family,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "device": str(loaded.device),
        "dtype": loaded.dtype,
        "context": getattr(_text_config(loaded), "max_position_embeddings", None),
        "fingerprint": loaded.fingerprint,
        "template": {"found": bool(loaded.template_hash), "hash": loaded.template_hash},
        "tokenizer_hash": loaded.tokenizer_hash,
        "format": {"name": wire.name, "detected": wire_format is None, "prefix": wire.prefix()},
        "decision_token": asdict(decision),
        "layers": _layers(loaded, check),
        "timing": asdict(_time_step(loaded, ids)),
    }


def _text_config(loaded: LoadedModel) -> Any:
    return loaded.model.config.get_text_config(decoder=True)


def _layers(loaded: LoadedModel, check: SelfCheck) -> dict[str, Any]:
    return {
        "path": loaded.view.path,
        "blocks": check.blocks,
        "hidden_size": check.hidden_size,
        "vocab_size": check.vocab_size,
        "output_type": check.output_type,
        "hooks_equal_hidden_states": check.compared,
        "last_hidden_state_is_normed": check.last_is_normed,
    }


def _decision(loaded: LoadedModel, wire: WireFormat) -> tuple[Tensor, DecisionToken]:
    """Return the sample request up to its decision token, (1, positions), and that token."""
    from toolguard.adapters.decision_token import name_tokens

    tokenizer = cast("Any", loaded.tokenizer)
    prompt = wire.render(tokenizer, _MESSAGES, _MENU)
    names = name_tokens(tokenizer, wire, _MENU.names, prompt)
    ids = [*tokenizer(prompt, add_special_tokens=False)["input_ids"], *names.prefix_ids]
    first = _MENU.names[0]
    decision = DecisionToken(
        before=tokenizer.decode(ids[-1 - _TOKENS_BEFORE : -1]),
        token=tokenizer.decode(ids[-1:]),
        token_id=ids[-1],
        after=tokenizer.decode(list(names.paths[first])),
        position=len(ids) - 1,
    )
    return torch.tensor([ids], device=loaded.device), decision


def _time_step(loaded: LoadedModel, ids: Tensor) -> StepTimes:
    model = cast("Any", loaded.model)
    with torch.no_grad():
        started = time.perf_counter()
        output = model(input_ids=ids, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)  # (1, 1)
        token.tolist()  # waits for the device
        read = time.perf_counter()
        step = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        step.logits[:, -1].argmax(-1).tolist()
        stepped = time.perf_counter()
    return StepTimes(
        prompt_tokens=ids.shape[1],
        prompt_ms=1e3 * (read - started),
        step_ms=1e3 * (stepped - read),
    )


def _lines(report: dict[str, Any]) -> list[str]:
    found = "detected" if report["format"]["detected"] else "as asked"
    template = report["template"]["hash"][:12] if report["template"]["found"] else "none"
    token = report["decision_token"]
    rows = (
        ("model", f"{report['model']} {report['revision']}".strip()),
        ("architecture", f"{report['architecture']} ({report['family']})"),
        ("parameters", f"{report['parameters']:,}, {report['dtype']} on {report['device']}"),
        ("context", f"{report['context']} positions"),
        ("fingerprint", report["fingerprint"][:12]),
        ("chat template", template),
        ("wire format", f"{report['format']['name']} ({found})"),
        ("decision token", f"{token['token']!r}, id {token['token_id']}, in"),
        ("", f"...{token['before']!r} + {token['token']!r} + {token['after']!r}"),
        *_layer_rows(report["layers"]),
        *_timing_rows(report["timing"]),
    )
    return [f"{name:<15} {value}" for name, value in rows] + ["ok: the guard can read this model"]


def _layer_rows(layers: Mapping[str, Any]) -> list[tuple[str, str]]:
    equal, others = layers["hooks_equal_hidden_states"], layers["blocks"] - 1
    last = "after the final norm" if layers["last_hidden_state_is_normed"] else "not normed"
    return [
        ("layers", f"{layers['blocks']} of width {layers['hidden_size']} at {layers['path']}"),
        (
            "hook parity",
            f"{equal} of {others} blocks equal hidden_states[i + 1]; the last is {last}",
        ),
    ]


def _timing_rows(timing: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("prompt", f"{timing['prompt_tokens']} tokens in {timing['prompt_ms']:.1f} ms"),
        ("one step", f"{timing['step_ms']:.1f} ms"),
    ]
