"""Where a decoder-only model keeps its blocks, final norm and unembedding, and how to tap them.

What differs between families is data (`FAMILIES`); everything else is one code for all of them.
Knows nothing of tokens, tools or formats.

    model                     a transformers ...ForCausalLM or ...ForConditionalGeneration
    └── <parent>              model | model.language_model | transformer | ...
        ├── <blocks>          ModuleList; block i returns the residual stream
        └── <final norm>      applied once after the last block, before the unembedding
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from toolguard.guard.errors import ConfigError, ReadoutError, ShapeError, UnsupportedModel

Output = TypeVar("Output")
BlockCallback = Callable[[int, Tensor], Tensor | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where one architecture keeps what the guard reads.

    Args:
        name: the config's `model_type`.
        blocks: dotted path from the model to the ModuleList of decoder blocks.
        norm: dotted path to the norm after the last block.
    """

    name: str
    blocks: str = "model.layers"
    norm: str = "model.norm"


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(name="qwen2"),
        Family(name="qwen3"),
        Family(name="qwen3_moe"),
        Family(name="llama"),
        Family(name="mistral"),
        Family(name="gemma2"),
        Family(name="gemma3_text"),
        Family(
            name="gemma3",
            blocks="model.language_model.layers",
            norm="model.language_model.norm",
        ),
        Family(name="phi3"),
        Family(name="olmo2"),
        Family(name="gpt2", blocks="transformer.h", norm="transformer.ln_f"),
        Family(name="gpt_neox", blocks="gpt_neox.layers", norm="gpt_neox.final_layer_norm"),
    )
}

# Names the final norm goes by beside the blocks, tried in order for a path the table does not list.
NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "ln_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A model together with the parts the guard reads; holds references, changes nothing.

    Args:
        model: the whole model, as its user calls it.
        blocks: decoder blocks in forward order.
        final_norm: the norm between the last block and the unembedding.
        unembedding: (vocab, hidden), the model's own dtype and device, not a copy.
        hidden_size: width of the residual stream.
        family: the config's `model_type`.
        path: dotted path from `model` to the blocks.
    """

    model: nn.Module
    blocks: Sequence[nn.Module]
    final_norm: nn.Module
    unembedding: Tensor
    hidden_size: int
    family: str
    path: str


def resolve_blocks(model: nn.Module, *, path: str | None = None) -> ModelView:
    """Return the view of `model` from the family table, or from `path` where it is given.

    Args:
        model: a transformers decoder-only model, or a multimodal wrapper around one.
        path: dotted path from the model to its ModuleList of blocks; overrides the table.

    Raises:
        UnsupportedModel: if the architecture is unknown and no path is given, or blocks, final
            norm or unembedding are not where they should be; the hint lists what is there.
    """
    config = _text_config(model)
    family = _family(model, path)
    blocks = _blocks_at(model, family.blocks)
    expected = getattr(config, "num_hidden_layers", len(blocks))
    if expected != len(blocks):
        raise UnsupportedModel(
            f"{family.blocks} of {type(model).__name__} holds {len(blocks)} modules, "
            f"its config says num_hidden_layers={expected}",
            hint=_path_hint(model),
            path=family.blocks,
        )
    return ModelView(
        model=model,
        blocks=tuple(blocks),
        final_norm=_final_norm(model, family),
        unembedding=_unembedding(model, config.hidden_size),
        hidden_size=config.hidden_size,
        family=family.name,
        path=family.blocks,
    )


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise UnsupportedModel(
            f"{type(model).__name__} has no transformers config",
            hint="pass a transformers model made by AutoModelForCausalLM",
        )
    text = config.get_text_config(decoder=True)
    if not isinstance(getattr(text, "hidden_size", None), int):
        raise UnsupportedModel(f"the config of {type(model).__name__} has no hidden_size")
    return text


def _family(model: nn.Module, path: str | None) -> Family:
    name = str(getattr(model.config, "model_type", "")) or type(model).__name__
    if path is not None:
        return Family(name=name, blocks=path, norm="")
    if name not in FAMILIES:
        raise UnsupportedModel(
            f"architecture {name!r} ({type(model).__name__}) is not in the table of families: "
            f"{', '.join(sorted(FAMILIES))}",
            hint=_path_hint(model),
            family=name,
        )
    return FAMILIES[name]


def _path_hint(model: nn.Module) -> str:
    lists = [
        f"{name} ({len(module)} x {type(module[0]).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    found = f"; lists in this model: {', '.join(lists[:8])}" if lists else ""
    return f"set --layers-path (layers_path=) to the dotted path of the decoder blocks{found}"


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        found = attrgetter(path)(model)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Module) else None


def _blocks_at(model: nn.Module, path: str) -> nn.ModuleList:
    found = _module_at(model, path)
    if not isinstance(found, nn.ModuleList) or not len(found):
        kind = "nothing" if found is None else f"{type(found).__name__}"
        raise UnsupportedModel(
            f"expected a ModuleList of blocks at {path!r} of {type(model).__name__}, found {kind}",
            hint=_path_hint(model),
            path=path,
        )
    return found


def _final_norm(model: nn.Module, family: Family) -> nn.Module:
    if family.norm:
        tried = [family.norm]
    else:
        parent = family.blocks.rpartition(".")[0]
        tried = [f"{parent}.{name}" if parent else name for name in NORM_NAMES]
    for path in tried:
        found = _module_at(model, path)
        if found is not None:
            return found
    raise UnsupportedModel(
        f"no final norm in {type(model).__name__}; looked for {', '.join(tried)}",
        hint="add the architecture, with the path of its norm, to FAMILIES in adapters/blocks.py",
    )


def _unembedding(model: nn.Module, hidden_size: int) -> Tensor:
    get = getattr(model, "get_output_embeddings", None)
    weight = getattr(get() if get else None, "weight", None)
    if not isinstance(weight, Tensor):
        raise UnsupportedModel(
            f"{type(model).__name__} has no output embedding (language-model head)",
            hint="load it with AutoModelForCausalLM; a bare backbone cannot choose tokens",
        )
    if weight.ndim != 2 or weight.shape[1] != hidden_size:
        raise UnsupportedModel(
            f"unembedding of {type(model).__name__}: expected (vocab, {hidden_size}), "
            f"found {tuple(weight.shape)}",
            hint="weights packed by a quantiser cannot be read; keep the head in float",
        )
    return weight.detach()


def hidden_of(output: object) -> Tensor:
    """Return the residual stream in a block's output: (batch, positions, hidden).

    Args:
        output: what the block returned, a tensor or a tuple that begins with one.

    Raises:
        ReadoutError: if it is neither.
    """
    first = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(first, Tensor) or first.ndim != 3:
        found = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ReadoutError(
            f"a block returned {found}, "
            "expected (batch, positions, hidden) or a tuple that begins with it",
            hint="check --layers-path: it must name the decoder blocks",
        )
    return first


def with_hidden(output: Output, hidden: Tensor) -> Output:
    """Return `output` with its residual stream replaced, the other items of a tuple kept.

    Args:
        output: what the block returned.
        hidden: (batch, positions, hidden); moved to the device and dtype of what it replaces.

    Raises:
        ReadoutError: if `output` holds no residual stream.
        ShapeError: if the shapes differ.
    """
    old = hidden_of(output)
    if hidden.shape != old.shape:
        raise ShapeError(
            f"a replaced hidden state must keep its shape {tuple(old.shape)}, "
            f"found {tuple(hidden.shape)}",
            expected=tuple(old.shape),
            found=tuple(hidden.shape),
        )
    new = hidden.to(device=old.device, dtype=old.dtype)
    if not isinstance(output, tuple):
        return cast("Output", new)
    items = (new, *output[1:])
    # A named tuple takes its fields one by one, a plain one as an iterable.
    made = type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return cast("Output", made)


@contextmanager
def tap_blocks(view: ModelView, layers: Sequence[int], callback: BlockCallback) -> Iterator[None]:
    """Call `callback` with the output of each listed block while the context is open.

    Only forwards of the thread that opened the context are seen: another thread may use the same
    model meanwhile and stays untouched. Hooks are removed on every way out, exceptions included.

    Args:
        view: the model's parts.
        layers: block indices, 0 to blocks - 1; each is tapped once however often it is listed.
        callback: gets (block index, (batch, positions, hidden)) on the block's own device; a
            returned tensor of the same shape replaces the block's output, None keeps it.

    Raises:
        ConfigError: if a layer is not a block index.
    """
    wanted = sorted(set(layers))
    for layer in wanted:
        if not 0 <= layer < len(view.blocks):
            raise ConfigError(
                f"layer {layer} is not a block: expected 0 to {len(view.blocks) - 1}",
                hint="layers are block indices counted from 0",
                layer=layer,
            )
    with ExitStack() as stack:
        for layer in wanted:
            hook = _tap_hook(layer, callback, threading.get_ident())
            stack.callback(view.blocks[layer].register_forward_hook(hook).remove)
        yield


def _tap_hook(
    layer: int, callback: BlockCallback, owner: int
) -> Callable[[nn.Module, tuple[Any, ...], object], object]:
    def hook(_block: nn.Module, _args: tuple[Any, ...], output: object) -> object:
        if threading.get_ident() != owner:
            return None  # None tells torch to keep the output
        replaced = callback(layer, hidden_of(output))
        return None if replaced is None else with_hidden(output, replaced)

    return hook
