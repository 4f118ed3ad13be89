"""The marked blocks of the project's pages, and the output of commands that stands in them.

A block stands between `<!-- output: NAME -->` and `<!-- end -->`. Each name has one source: a
function that gives its text, or None as long as there is nothing to measure.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from toolguard.calibration.cli import toolguard

Source = Callable[[], str | None]
BLOCK = re.compile(r"(<!-- output: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
_GATE = 3  # exit code of a command whose gate was not met: a finding


def refresh(
    text: str, sources: Mapping[str, Source], placeholder: str, only: Sequence[str] = ()
) -> str:
    """Return a page's text with the blocks written anew; an unknown name is an error.

    Args:
        text: the page.
        sources: what gives the blocks, by their names.
        placeholder: stands where there is nothing to measure.
        only: blocks to write; the others stay. Empty for all.
    """

    def written(block: re.Match[str]) -> str:
        name = block["name"]
        if name not in sources:
            sys.exit(f"a page names the unknown output {name!r}; known: {', '.join(sources)}")
        if only and name not in only:
            return block[0]
        return f"{block[1]}{sources[name]() or placeholder}\n{block[4]}"

    return BLOCK.sub(written, text)


def fenced(text: str) -> str:
    """Return the text as a block of code."""
    return f"```text\n{text.rstrip()}\n```"


def command_text(*words: str) -> str:
    """Run a command of toolguard and return what it prints; one that fails ends the program."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        code = toolguard.main(words, prog_name="toolguard", standalone_mode=False)
    if code not in (None, 0, _GATE):
        sys.exit(f"a command behind a page ended with {code}")
    return stream.getvalue()


def command_output(*words: str) -> str:
    """Run a command of toolguard and return it with what it prints, as a block of code."""
    shown = " ".join(f'"{word}"' if " " in word else word for word in words)
    return fenced(f"$ toolguard {shown}\n{command_text(*words)}")
