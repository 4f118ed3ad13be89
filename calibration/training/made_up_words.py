"""Words, values and results that mean nothing, so that nobody can learn them by heart."""

from __future__ import annotations

import json
from random import Random

_ONSETS = (
    *"bcdfghjklmnprstvwyz",
    "br",
    "ch",
    "cl",
    "dr",
    "fl",
    "gr",
    "pl",
    "sh",
    "st",
    "th",
    "tr",
    "",
)
_VOWELS = (*"aeiou", *"aeiou", "ai", "ea", "ou", "ee", "io")
_CODAS = ("", "", "", *"nrstlmkd", "nd", "rt", "ll", "ck", "st")

_QUOTES_AND_DASHES = "\u2018\u2019\u201c\u201d\u2013\u2014\u2026"
_SIGNS: tuple[str, ...] = (
    *"áàâäåãæçéèêëíîïñóòôöøõúùûüýßłšžğ°€£&",
    *_QUOTES_AND_DASHES,
    *"éüñ\u2019\u2019\u2013",
)
_BEYOND_ASCII = 0.05
_DONE = ("ok", "done", "saved", "confirmed", "queued", "true", "sent", "no entries found")


def made_up_word(rng: Random) -> str:
    """Return a word of one to three syllables that means nothing."""
    syllables = range(rng.choice((1, 2, 2, 2, 3)))
    word = "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in syllables
    )
    return word.capitalize() if rng.random() < 0.4 else word


def made_up_name(rng: Random) -> str:
    """Return a made-up word, one in twenty with letters or signs beyond ASCII."""
    word = made_up_word(rng)
    if rng.random() >= _BEYOND_ASCII:
        return word
    at = rng.randrange(len(word) + 1)
    return word[:at] + rng.choice(_SIGNS) + word[at:]


def made_up_value(rng: Random) -> str:
    """Return an argument value, which has to be copied."""
    word, other = made_up_name(rng), made_up_name(rng)
    number = str(rng.randrange(1, 10 ** rng.randint(1, 4)))
    kinds = (
        word,
        word,
        f"{word} {other}",
        f"{word} {other}",
        f"{word} {other} {made_up_name(rng)}",
        f"{word} {word} {other}",
        f"{word} {number}",
        f"{word}@{other}.{rng.choice(('com', 'org', 'example'))}".lower(),
        f"{word}/{other}.{rng.choice(('txt', 'md', 'csv', 'py', 'json'))}".lower(),
        f"{word}({number})",
        f"{number} {word}",
    )
    return rng.choice(kinds)


def made_up_result(rng: Random) -> str:
    """Return what a tool may have answered: a word of success, a count, a value, a small object."""
    value, number = made_up_value(rng), rng.randrange(10 ** rng.randint(1, 4))
    kinds = (
        rng.choice(_DONE),
        rng.choice(_DONE),
        str(number),
        f"{number} {made_up_word(rng).lower()}",
        value,
        f"{value}, {made_up_value(rng)}",
        f"{rng.choice(_DONE)}: {value}",
        f"{made_up_word(rng)} {rng.choice(_DONE)} {made_up_word(rng).lower()}",
        f"error: {value}",
        json.dumps({made_up_word(rng).lower(): value}, ensure_ascii=False),
        json.dumps({made_up_word(rng).lower(): value, made_up_word(rng).lower(): number}),
    )
    return rng.choice(kinds)
