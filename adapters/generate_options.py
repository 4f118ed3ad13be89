"""The options of HF `generate`: which can be guarded, and what they come to for one call."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolguard.adapters.loading import LoadedModel
from toolguard.guard.errors import ConfigError

DEFAULT_NEW_TOKENS = 512

# Ways of decoding that run the model in other steps than one token a row, with what turns them off.
_ONE_WAY: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1, None),
    "num_beam_groups": (1, None),
    "num_return_sequences": (1, None),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "dola_layers": (None,),
    "penalty_alpha": (None, 0.0),
    "prefill_chunk_size": (None,),
    "token_healing": (None, False),
}
_OURS = (
    "streamer",
    "assistant_model",
    "custom_generate",
    "return_dict_in_generate",
    "inputs",
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "past_key_values",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """Checked options of one call.

    Args:
        given: what the user passed, without the length.
        new_tokens: most tokens to generate; None if `length` bounds them.
        length: most tokens of prompt, padding and answer together, or None.
        end_tokens: ids at which `generate` ends a row.
        pad_token: what it pads finished rows with.
        plain_cache: whether the cache is the default one, which can be kept and cropped.
    """

    given: Mapping[str, Any]
    new_tokens: int | None
    length: int | None
    end_tokens: frozenset[int]
    pad_token: int
    plain_cache: bool

    @classmethod
    def of(cls, loaded: LoadedModel, given: Mapping[str, Any]) -> GenerateOptions:
        """Return the checked options.

        Raises:
            ConfigError: if an option cannot be guarded.
        """
        found = _Lookup(loaded, given)
        _check(found, given)
        ends = _ids(found.get("eos_token_id"))
        pad = next(iter((*_ids(found.get("pad_token_id")), *ends)), None)
        if pad is None:
            pad = loaded.tokenizer.pad_token_id or 0
        new_tokens, length = found.get("max_new_tokens"), found.get("max_length")
        if new_tokens is None and length is None:
            new_tokens = DEFAULT_NEW_TOKENS
        rest = {k: v for k, v in given.items() if k not in ("max_new_tokens", "max_length")}
        return cls(
            given=rest,
            new_tokens=new_tokens,
            length=length if new_tokens is None else None,
            end_tokens=frozenset(ends),
            pad_token=int(pad),
            plain_cache=found.get("use_cache") is not False
            and found.get("cache_implementation") is None,
        )

    def room(self, width: int) -> int:
        """Return how many tokens may follow a padded prompt of `width` tokens; may be negative."""
        if self.new_tokens is not None:
            return int(self.new_tokens)
        return int(self.length or 0) - width

    def settings(self, new_tokens: int) -> dict[str, Any]:
        """Return the keyword arguments of `generate` for at most `new_tokens` more."""
        ours = {
            "max_new_tokens": new_tokens,
            "pad_token_id": self.pad_token,
            "return_dict_in_generate": True,
            "disable_compile": True,  # a compiled forward may leave hooks out
        }
        settings = dict(self.given)
        config = settings.get("generation_config")
        if config is None:
            return {**settings, **ours}
        config = copy.deepcopy(config)
        config.update(**ours, max_length=None)
        return {**settings, "generation_config": config}


class _Lookup:
    """What an option comes to: as passed, else from a passed config, else from the model's."""

    def __init__(self, loaded: LoadedModel, given: Mapping[str, Any]) -> None:
        self._given = given
        self._configs = (given.get("generation_config"), loaded.model.generation_config)

    def get(self, name: str) -> Any:
        if self._given.get(name) is not None:
            return self._given[name]
        values = (getattr(config, name, None) for config in self._configs)
        return next((value for value in values if value is not None), None)


def _check(found: _Lookup, given: Mapping[str, Any]) -> None:
    for name, allowed in _ONE_WAY.items():
        value = found.get(name)
        if value not in allowed:
            raise ConfigError(
                f"{name}={value} cannot be guarded",
                hint="use greedy decoding or sampling, one sequence a conversation",
                option=name,
            )
    if refused := [name for name in _OURS if given.get(name) is not None]:
        raise ConfigError(
            f"{', '.join(refused)} cannot be passed to a guarded generate",
            hint="stream with on_text; prompts come from messages and tools",
            option=refused[0],
        )


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(item) for item in (value if isinstance(value, list | tuple) else [value])]
