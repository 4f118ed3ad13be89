"""Which rows of tokens go through the model together (see `packed_rows`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolguard.calibration.reading.shared_text import Ids, common_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Rows to run together.

    Args:
        members: indices of the rows, in the order in which they are laid out.
        kept: for each member how many first tokens it takes from the member before it.
    """

    members: tuple[int, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackPlan:
    """How rows are put into packs.

    Args:
        most: new tokens in one pack; a longer row goes alone.
        enough: new tokens from which on a row joins only if that costs less than a pack of its own,
            because of what it shares; between unlike rows the mask only hides work done.
        token_cost: what a token costs beside its row and pack, in keys looked at: the prefix, and
            its share of the matrix products.
    """

    most: int
    enough: int
    token_cost: int

    def joins(self, used: int, length: int, kept: int) -> bool:
        """Tell whether a row that shares `kept` of its tokens joins a pack of `used` tokens."""
        new = length - kept
        if used + new <= min(self.enough, self.most):
            return True
        # Each new token looks at the whole pack, and each old one at the new ones, hidden or not.
        together = new * (self.token_cost + 2 * used + new)
        return used + new <= self.most and together < length * (self.token_cost + length)


def plan_packs(rows: Sequence[Ids], plan: PackPlan) -> Iterator[Pack]:
    """Yield packs, with the rows in the order of their tokens: those that begin alike together."""
    # Big-endian bytes sort as the ids do.
    order = sorted(range(len(rows)), key=lambda row: rows[row].astype(">i4").tobytes())
    members: list[int] = []
    kept: list[int] = []
    used = 0
    for row in order:
        length = len(rows[row])
        same = _kept(rows[members[-1]], rows[row]) if members else 0
        if members and not plan.joins(used, length, same):
            yield Pack(members=tuple(members), kept=tuple(kept))
            members, kept, used, same = [], [], 0, 0
        members.append(row)
        kept.append(same)
        used += length - same
    if members:
        yield Pack(members=tuple(members), kept=tuple(kept))


def _kept(before: Ids, row: Ids) -> int:
    # Neither row's last token is shared: each is read, and may be changed, for its row alone.
    return min(common_length(before, row), len(before) - 1, len(row) - 1)
