"""Templates: how values become text. Everything is escaped; there is no way around it."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from toolguard.adapters.shown_numbers import figure, percent, share_text
from toolguard.adapters.shown_text import shown, shown_json

FOLDER = Path(__file__).parent
_DIGEST = re.compile(r"(hmac-sha256:)?[0-9a-f]{64}")

STATE_WORDS = {
    "": "",
    "done": "done",
    "failed": "failed",
    "blocked": "blocked",
    "rejected": "rejected",
    "answered": "answered in its place",
    "paused": "paused by the tool",
    "running": "running",
    "waiting": "waiting for a person",
}


class Pages:
    """The templates, and the two ways in which each page leaves: whole, or its living part."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(
            shown=shown,
            shown_json=shown_json,
            figure=figure,
            percent=percent,
            share=share_text,
            clock=clock,
            moment=moment,
            signal=lambda name: shown(name).replace("logprob", "log-prob"),
            words=lambda text: shown(text).replace("_", " "),
            state=lambda text: STATE_WORDS.get(text, shown(text)),
            quoted=lambda text: quote(str(text), safe="", errors="backslashreplace"),
        )

        self._environment.tests["digest"] = lambda text: bool(_DIGEST.fullmatch(str(text)))

    def part(self, name: str, **values: Any) -> str:
        """Return the part of a page that lives."""
        return self._environment.get_template(f"parts/{name}.html").render(**values)

    def page(self, name: str, **values: Any) -> str:
        """Return the whole page around its part."""
        part = self.part(name, **values)
        template = self._environment.get_template("page.html")
        return template.render(**values, page=name, part_key=part_key(part))

    def note(self, title: str, text: str) -> str:
        """Return a page that says one thing."""
        return self._environment.get_template("note.html").render(title=title, text=text)


def part_key(html: str) -> str:
    """Return what differs for parts that differ; a reader that has this one needs no new one."""
    return hashlib.sha256(html.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def clock(at: datetime) -> str:
    """Return the time of day, UTC; with the date unless it is today."""
    at = at.astimezone(UTC)
    today = datetime.now(UTC).date() == at.date()
    return at.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def moment(at: datetime) -> str:
    """Return date and time, UTC, to the millisecond."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"
