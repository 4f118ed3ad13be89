"""Records put together by what their prompts begin with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from toolguard.calibration.datasets.records import Record
from toolguard.calibration.reading.prompts import OnSkip, Prompt, PromptGroup, PromptWriter
from toolguard.calibration.reading.shared_text import Ids, as_ids
from toolguard.guard.errors import ConfigError


def prompt_groups(
    writer: PromptWriter, records: Sequence[Record], on_skip: OnSkip
) -> Iterator[PromptGroup]:
    """Yield the prompts menu by menu, in order of appearance; lone ones in one group at the end.

    Args:
        writer: of the model that is to run them.
        records: looked at together.
        on_skip: told of each record that has no prompt.
    """
    lone: list[Prompt] = []
    for own in _by_menu(writer, records, on_skip):
        group = writer.write(own, on_skip)
        if len(group.prompts) <= 1:
            lone += group.prompts  # shares nothing, so its suffix is the whole prompt
        else:
            yield group
    if lone:
        yield PromptGroup(shared=as_ids(()), prompts=tuple(lone))


def _by_menu(
    writer: PromptWriter, records: Sequence[Record], on_skip: OnSkip
) -> Iterable[list[Record]]:
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        try:
            groups[writer.group_key(record)].append(record)
        except ConfigError as error:
            on_skip(record, error)
    return groups.values()


def without_openings(group: PromptGroup) -> tuple[Ids, list[Ids]]:
    """Return the rows up to where a call could start: what they share, and the rest of each.

    Each row keeps a token of its own, also where two prompts are equal.
    """
    whole = [np.concatenate([group.shared, prompt.suffix]) for prompt in group.prompts]
    cut = [
        ids[: len(ids) - len(prompt.prefix_ids)]
        for ids, prompt in zip(whole, group.prompts, strict=True)
    ]
    length = min(len(group.shared), *(len(ids) - 1 for ids in cut))
    return group.shared[:length], [ids[length:] for ids in cut]
