"""Numbers as pages for people write them; what is not known is a dash."""

from __future__ import annotations

from toolguard.guard.rate import Rate

NONE = "\N{EN DASH}"


def figure(value: float | None, digits: int = 3) -> str:
    """Return the number with so many digits after the point; a dash if there is none."""
    return NONE if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share as per cent; a dash if there is none."""
    return NONE if value is None else f"{100 * value:.1f}%"


def share_text(share: Rate) -> str:
    """Return a share with its interval and n."""
    if share.value is None or share.low is None or share.high is None:
        return NONE
    return f"{percent(share.value)} [{100 * share.low:.1f}, {100 * share.high:.1f}], n = {share.n}"
