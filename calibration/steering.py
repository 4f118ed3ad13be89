"""Does pushing the hidden state change the tool, and do the arguments follow?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from torch import Tensor

from toolguard.adapters.loading import LoadedModel
from toolguard.adapters.wire import WireFormat
from toolguard.calibration.generation import continue_prompts
from toolguard.guard.profile import Profile
from toolguard.guard.rate import Rate, wilson
from toolguard.guard.tools import Menu
from toolguard.guard.trie import NameTrie

SteeringMethod = Literal["mean_difference", "unembedding_row", "random", "redirect"]
METHODS: tuple[SteeringMethod, ...] = get_args(SteeringMethod)


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringCase:
    """One prompt and the pair of tools to switch between.

    Args:
        prompt: token ids through the decision token.
        turn: text of the assistant's turn that stands in the prompt.
        trie: the menu's names as tokens.
        menu: the tools on offer.
        source: what the model chooses unsteered.
        target: another tool of the menu.
    """

    prompt: tuple[int, ...]
    turn: str
    trie: NameTrie
    menu: Menu
    source: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringResult:
    """How often the tool switched and the whole call fits the target's schema, over all cases."""

    switched: Rate
    schema_valid: Rate
    collisions: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON; in `schema_valid` a call that did not switch is not valid."""
        return {
            "n": self.switched.n,
            "switched": self.switched.to_dict(),
            "schema_valid": self.schema_valid.to_dict(),
            "first_token_collisions": self.collisions,
        }


def measure_steering(
    loaded: LoadedModel,
    wire: WireFormat,
    profile: Profile,
    cases: Sequence[SteeringCase],
    *,
    alpha: float = 1.0,
    new_tokens: int = 96,
    batch_tokens: int = 16_384,
    seed: int = 0,
) -> dict[SteeringMethod, SteeringResult]:
    """Return, for each method, the switch rate and the schema validity over the same cases.

    `mean_difference` adds alpha times the target's mean minus the source's; `unembedding_row` adds
    the difference of the unembedding rows of the two names' first tokens, and `random` a Gaussian
    vector, both scaled to the same norm; `redirect` forces the target's name.

    Args:
        loaded: the model.
        wire: format of the calls.
        profile: means and layer.
        cases: prompts and pairs.
        alpha: multiples of the mean difference.
        new_tokens: most tokens of a call.
        batch_tokens: bound on one batch.
        seed: of the random vectors.

    Source: docs/decisions/0003-margin.md; Wu et al., arXiv 2605.07990, for the controls.
    """
    natural = torch.stack([_mean_difference(profile, case) for case in cases]) * alpha
    rows = torch.stack([_row_difference(loaded, case) for case in cases])
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(natural.shape, generator=draw)
    vectors: dict[SteeringMethod, Tensor | None] = {
        "mean_difference": natural,
        "unembedding_row": _at_norm(rows, natural),
        "random": _at_norm(noise, natural),
        "redirect": None,
    }
    results: dict[SteeringMethod, SteeringResult] = {}
    for method in METHODS:
        forced = method == "redirect"
        prompts = [
            (*case.prompt, *case.trie.path_of(case.target)) if forced else case.prompt
            for case in cases
        ]
        texts = continue_prompts(
            loaded,
            prompts,
            new_tokens=new_tokens,
            batch_tokens=batch_tokens,
            layer=profile.meta.layer,
            vectors=vectors[method],
        )
        outcomes = [
            _outcome(
                loaded, wire, case, [*case.trie.path_of(case.target), *tokens] if forced else tokens
            )
            for case, tokens in zip(cases, texts, strict=True)
        ]
        results[method] = SteeringResult(
            switched=wilson(sum(switched for switched, _ in outcomes), len(outcomes)),
            schema_valid=wilson(sum(valid for _, valid in outcomes), len(outcomes)),
            collisions=sum(_collide(case) for case in cases),
        )
    return results


def _mean_difference(profile: Profile, case: SteeringCase) -> Tensor:
    names = profile.names
    means = profile.means
    return means[names.index(case.target)] - means[names.index(case.source)]


def _row_difference(loaded: LoadedModel, case: SteeringCase) -> Tensor:
    source, target = (case.trie.path_of(name)[0] for name in (case.source, case.target))
    unembedding = loaded.view.unembedding
    difference: Tensor = (unembedding[target] - unembedding[source]).float().cpu()
    return difference


def _collide(case: SteeringCase) -> bool:
    return case.trie.path_of(case.source)[0] == case.trie.path_of(case.target)[0]


def _at_norm(vectors: Tensor, like: Tensor) -> Tensor:
    """Return the vectors (rows, dim) at the norms of `like`; a zero vector stays zero."""
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(1e-12)
    scaled: Tensor = vectors / length * torch.linalg.vector_norm(like, dim=1, keepdim=True)
    return scaled


def _outcome(
    loaded: LoadedModel, wire: WireFormat, case: SteeringCase, tokens: Sequence[int]
) -> tuple[bool, bool]:
    """Return whether the target was called, and whether the whole call fits its schema."""
    text = case.turn + str(
        loaded.tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )
    span = wire.find_name(text, 0)
    if span is None or span.name != case.target:
        return False, False
    turn, _ = wire.parse_written(text, menu=case.menu)
    if not turn.calls:
        return True, False
    tool = case.menu.get(case.target)
    return True, tool is not None and fits_schema(turn.calls[0].arguments, tool.parameters)


def fits_schema(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    """Return whether the arguments fit the JSON Schema (draft 2020-12); False if it is broken."""
    try:
        return bool(Draft202012Validator(dict(schema)).is_valid(dict(arguments)))
    except SchemaError:
        return False
