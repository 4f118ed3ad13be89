"""A tiny forward that proves a resolved view reads what it claims to read.

Every later reading trusts that block `i` fires once a forward and that its output is the residual
stream. A wrong `--layers-path`, a wrapper that runs blocks twice, or a checkpoint with broken
numbers shows here, at load, and not as a silently wrong margin.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from toolguard.adapters.blocks import ModelView, tap_blocks
from toolguard.guard.errors import ReadoutError, UnsupportedModel

_NUMBERS_HINT = "the checkpoint is damaged or overflows in this dtype; try --dtype float32"
_PATH_HINT = "set --layers-path to the decoder blocks that a plain forward runs once each"
# Narrower types hold no NaN or have no sum; what they break shows in the forward.
_SUMMABLE = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck:
    """What the tiny forward showed; it exists only if every check passed.

    Args:
        blocks: number of blocks, each of which fired exactly once.
        compared: blocks whose hooked output was bit-equal to `hidden_states[i + 1]`; all but the
            last, whose hidden state transformers returns after the final norm.
        hidden_size: width of the residual stream.
        vocab_size: rows of the unembedding.
        dtype: dtype of the residual stream.
        output_type: type name of what a block returns.
        last_is_normed: whether `hidden_states[-1]` is the final norm of the last block's output.
        seconds: wall time of the forward.
    """

    blocks: int
    compared: int
    hidden_size: int
    vocab_size: int
    dtype: str
    output_type: str
    last_is_normed: bool
    seconds: float


@dataclass(slots=True)
class _Seen:
    """What one forward left at the hooks, by block index."""

    counts: list[int]
    hidden: dict[int, Tensor] = field(default_factory=dict)
    output_type: str = ""

    def keep(self, layer: int, hidden: Tensor) -> None:
        self.counts[layer] += 1
        self.hidden[layer] = hidden

    def keep_type(self, _block: nn.Module, _args: object, output: object) -> None:
        self.output_type = type(output).__name__


def self_check(view: ModelView, *, positions: int = 6, scan_weights: bool = True) -> SelfCheck:
    """Return what one tiny forward shows of `view`, or raise at the first thing that is wrong.

    Args:
        view: what `resolve_blocks` found.
        positions: length of the input, > 0.
        scan_weights: look for NaN and infinity in every parameter, one read of the weights' memory.

    Raises:
        ReadoutError: if a weight, hidden state or logit is NaN or infinite, or a block returned
            something that is not a residual stream.
        UnsupportedModel: if the forward fails, a block fires never or twice, a shape is wrong, or a
            block's output differs from `hidden_states[i + 1]`.
    """
    if scan_weights:
        check_finite_weights(view.model.named_parameters())
    seen = _Seen([0] * len(view.blocks))
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.callback(view.blocks[0].register_forward_hook(seen.keep_type).remove)
        stack.enter_context(tap_blocks(view, range(len(view.blocks)), seen.keep))
        output = _tiny_forward(view, positions)
    seconds = time.perf_counter() - started
    _check_firings(view, seen, positions)
    _check_logits(view, output.logits, positions)
    _check_parity(view, seen.hidden, output.hidden_states)
    return SelfCheck(
        blocks=len(view.blocks),
        compared=len(view.blocks) - 1,
        hidden_size=view.hidden_size,
        vocab_size=view.unembedding.shape[0],
        dtype=str(seen.hidden[0].dtype).removeprefix("torch."),
        output_type=seen.output_type,
        last_is_normed=_is_normed(
            view, seen.hidden[len(view.blocks) - 1], output.hidden_states[-1]
        ),
        seconds=seconds,
    )


def check_finite_weights(parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Raise if a floating-point parameter holds NaN or infinity.

    Args:
        parameters: (name, parameter) pairs; those without storage (meta device) are left out.

    Raises:
        ReadoutError: naming the first such parameter.
    """
    for name, parameter in parameters:
        if parameter.is_meta or parameter.dtype not in _SUMMABLE:
            continue
        # A sum carries NaN and infinity through and makes no copy, unlike isfinite().all(); in
        # float64, so that no sum of finite float32 weights overflows.
        if not torch.isfinite(parameter.detach().sum(dtype=torch.float64)):
            raise ReadoutError(
                f"weight {name} holds NaN or infinity", hint=_NUMBERS_HINT, parameter=name
            )


def _tiny_forward(view: ModelView, positions: int) -> Any:
    model = cast("Any", view.model)
    # Low ids: placeholders of images and padding sit at the end of multimodal vocabularies.
    ids = (torch.arange(positions)[None] + 3) % min(
        view.unembedding.shape[0], 256
    )  # (1, positions)
    device = model.get_input_embeddings().weight.device
    try:
        with torch.no_grad():
            return model(
                # Offloaded weights (meta) are brought to the CPU by their own hooks.
                input_ids=ids if device.type == "meta" else ids.to(device),
                output_hidden_states=True,
                use_cache=False,
            )
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UnsupportedModel(
            f"{type(model).__name__} failed on a forward of {positions} tokens: {error}",
            hint="the guard needs a decoder-only model that runs on input_ids alone",
        ) from error


def _check_firings(view: ModelView, seen: _Seen, positions: int) -> None:
    expected = (1, positions, view.hidden_size)
    for layer, count in enumerate(seen.counts):
        if count != 1:
            raise UnsupportedModel(
                f"block {layer} at {view.path} fired {count} times in one forward, expected once",
                hint=_PATH_HINT,
                layer=layer,
                found=count,
            )
        found = tuple(seen.hidden[layer].shape)
        if found != expected:
            raise UnsupportedModel(
                f"block {layer} at {view.path}: expected an output of shape {expected}, "
                f"found {found}",
                hint=_PATH_HINT,
                layer=layer,
                found=found,
            )
        _check_finite(seen.hidden[layer], f"the output of block {layer}")


def _check_finite(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        raise ReadoutError(f"{what} holds NaN or infinity", hint=_NUMBERS_HINT)


def _check_logits(view: ModelView, logits: Tensor, positions: int) -> None:
    expected = (1, positions, view.unembedding.shape[0])
    if tuple(logits.shape) != expected:
        raise UnsupportedModel(
            f"logits of {type(view.model).__name__}: expected shape {expected}, "
            f"found {tuple(logits.shape)}",
            hint="the unembedding must have one row for each logit",
        )
    _check_finite(logits, "the logits")


def _check_parity(
    view: ModelView, hidden: dict[int, Tensor], states: tuple[Tensor, ...] | None
) -> None:
    found = 0 if states is None else len(states)
    if states is None or found != len(view.blocks) + 1:
        raise UnsupportedModel(
            f"{type(view.model).__name__} returned {found} hidden states, "
            f"expected {len(view.blocks) + 1} (embedding and one a block)",
            hint=_PATH_HINT,
            found=found,
        )
    for layer in range(len(view.blocks) - 1):
        state = states[layer + 1].to(hidden[layer].device)
        difference = float((hidden[layer] - state).abs().max())
        if difference > 0:
            raise UnsupportedModel(
                f"block {layer} at {view.path} differs from hidden_states[{layer + 1}] "
                f"by up to {difference:.3g}, expected equality",
                hint=_PATH_HINT,
                layer=layer,
                found=difference,
            )


def _is_normed(view: ModelView, last: Tensor, state: Tensor) -> bool:
    with torch.no_grad():
        normed = view.final_norm(last)
    return torch.allclose(normed.to(state.device), state, rtol=1e-3, atol=1e-5)
