"""Foreign text as a person can judge it: nothing invisible, nothing that turns the line around."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

# Controls, formats (among them those that reverse the direction), separators, unassigned.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
# Letters, marks and symbols by category, yet blank: fillers, empty Braille, variation selectors.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | frozenset(
    map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
)


def shown(text: object) -> str:
    r"""Return `text` with every character that cannot be seen written as \uXXXX."""
    return "".join(letter if _visible(letter) else _escaped(letter) for letter in str(text))


def shown_json(value: Any) -> str:
    r"""Return `value` as indented JSON; what cannot be seen is written \uXXXX, as JSON allows."""
    return _kept_lines(json.dumps(value, indent=2, ensure_ascii=False))


def _kept_lines(text: str) -> str:
    return "\n".join(map(shown, text.split("\n")))


def _visible(letter: str) -> bool:
    return letter == " " or (letter not in _BLANK and unicodedata.category(letter) not in _UNSEEN)


def _escaped(letter: str) -> str:
    # Pairs above U+FFFF, so that the text is still JSON with the same meaning.
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
