"""Which prompts are steered, and from which tool to which."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from random import Random
from typing import Literal, get_args

from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.prompt_groups import prompt_groups
from toolguard.calibration.reading.prompts import Prompt, PromptGroup, PromptWriter
from toolguard.calibration.reading.shared_text import Ids
from toolguard.calibration.steering_lab.free_walk import node_after
from toolguard.guard.errors import ToolguardError
from toolguard.guard.trie import ROOT, NameTrie

PairKind = Literal[
    "apart",  # the decision token chooses between the two, and the target is then settled
    "crowded",  # it chooses, but a third tool of the menu shares the target's first token
    "colliding",  # the two share their first token, so that it cannot choose
]
PAIR_KINDS: tuple[PairKind, ...] = get_args(PairKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A record and the tool that the model chooses for it, its greedy whole name."""

    record: Record
    chosen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A place where the target's name parts from others.

    Args:
        opening: tokens of the target's name that stand already.
        target: the tool wanted.
        rivals: the tools to win over.
        tokens: next token of each rival's name, as many.
        token: next token of the target's name.
        number: of the pair.
    """

    opening: tuple[int, ...]
    target: str
    rivals: tuple[str, ...]
    tokens: tuple[int, ...]
    token: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """One prompt and the two tools to switch between.

    Args:
        number: counts the pairs of one draw; seeds what is random about this one.
        shared: what the prompts of its group begin with.
        prompt: the rest, through the decision token.
        source: what the model chooses unsteered.
        target: another tool of the menu.
    """

    number: int
    shared: Ids
    prompt: Prompt
    source: str
    target: str

    @property
    def common(self) -> tuple[int, ...]:
        """Tokens that both names begin with; the names part at the token after them."""
        return common_tokens(self.prompt.trie, self.source, self.target)

    def at_decision(self) -> Contest:
        """Return the contest between the two at the decision token, where they may collide."""
        return self._contest((), (self.source,))

    def contests(self) -> tuple[Contest, ...]:
        """Return all that must be won: first over the source, then over each third tool."""
        trie, first = self.prompt.trie, len(self.common)
        path = trie.path_of(self.target)
        found = [self._contest(self.common, (self.source,))]
        for depth in range(first + 1, len(path)):
            node = node_after(trie, path[:depth])
            below = () if node is None else trie.names_below(node)
            names = [trie.names[index] for index in below]
            rivals = tuple(n for n in names if trie.path_of(n)[depth] != path[depth])
            if rivals:
                found.append(self._contest(path[:depth], rivals))
        return tuple(found)

    def _contest(self, opening: tuple[int, ...], rivals: tuple[str, ...]) -> Contest:
        trie, place = self.prompt.trie, len(opening)
        return Contest(
            opening=opening,
            target=self.target,
            rivals=rivals,
            tokens=tuple(trie.path_of(name)[place] for name in rivals),
            token=trie.path_of(self.target)[place],
            number=self.number,
        )


def common_tokens(trie: NameTrie, source: str, target: str) -> tuple[int, ...]:
    """Return the tokens that two names of a menu both begin with."""
    paths = zip(trie.path_of(source), trie.path_of(target), strict=False)
    length = next(place for place, (one, other) in enumerate(paths) if one != other)
    return trie.path_of(source)[:length]


def kind_of(trie: NameTrie, source: str, target: str) -> PairKind:
    """Return how the names of two tools of a menu meet."""
    if common_tokens(trie, source, target):
        return "colliding"
    (first, *_) = trie.path_of(target)
    reached = trie.advance(ROOT, first)
    alone = reached is not None and len(trie.names_below(reached)) == 1
    return "apart" if alone else "crowded"


def draw_pairs(
    writer: PromptWriter,
    choices: Sequence[Choice],
    steerable: Container[str],
    *,
    most: int,
    seed: int,
    kind: PairKind | None = None,
) -> list[Pair]:
    """Return at most `most` pairs, those whose prompts begin alike together.

    Every record is used once before one is used again, and no record twice with one target.

    Args:
        writer: of the prompts.
        choices: records whose prompts it can write.
        steerable: names of the tools with a mean; both of a pair must be among them.
        most: bound on the pairs.
        seed: of the draw.
        kind: only pairs of this kind; None takes all.
    """
    rng = Random(seed)
    usable = [choice for choice in choices if choice.chosen in steerable]
    rng.shuffle(usable)

    def wanted(choice: Choice, target: str) -> bool:
        if kind is None:
            return True
        return kind_of(writer.trie(choice.record), choice.chosen, target) == kind

    drawn = list(islice(_rounds(usable, steerable, wanted, rng), most))
    groups = grouped_prompts(writer, [choice.record for choice, _ in drawn])
    prompts = {
        prompt.record.id: (group.shared, prompt) for group in groups for prompt in group.prompts
    }
    pairs = [
        Pair(
            number=number,
            shared=prompts[choice.record.id][0],
            prompt=prompts[choice.record.id][1],
            source=choice.chosen,
            target=target,
        )
        for number, (choice, target) in enumerate(drawn)
    ]
    order = {record_id: place for place, record_id in enumerate(prompts)}
    return sorted(pairs, key=lambda pair: order[pair.prompt.record.id])


def _rounds(
    choices: Sequence[Choice],
    steerable: Container[str],
    wanted: Callable[[Choice, str], bool],
    rng: Random,
) -> Iterator[tuple[Choice, str]]:
    """Yield each choice with one target, then each with another one, and so on."""
    targets = []
    for choice in choices:
        others = [n for n in choice.record.menu.names if n in steerable and n != choice.chosen]
        rng.shuffle(others)
        targets.append([name for name in others if wanted(choice, name)])
    for names in zip_longest(*targets):
        for choice, target in zip(choices, names, strict=True):
            if target is not None:
                yield choice, target


def grouped_prompts(writer: PromptWriter, records: Iterable[Record]) -> Iterator[PromptGroup]:
    """Yield the records' prompts by what they begin with; a record met twice has one prompt.

    Raises:
        ConfigError: if a record has no prompt.
    """
    distinct = {record.id: record for record in records}
    return prompt_groups(writer, list(distinct.values()), _refuse)


def _refuse(_record: Record, error: ToolguardError) -> None:
    raise error
