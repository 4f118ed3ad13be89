"""Drawings as SVG, escaped by construction, and the axes that charts share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from toolguard.adapters.shown_text import shown

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]


class Drawing:
    """An SVG that scales to its place on the page; every text in it is escaped.

    Args:
        width: of the drawing's own units.
        height: of the same.
        label: what it shows, for those who do not see it; empty if it only repeats text beside it.
    """

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height = width, height
        told = {"role": "img", "aria-label": shown(label)} if label else {"aria-hidden": "true"}
        self._root = Element("svg", {"viewBox": f"0 0 {_n(width)} {_n(height)}", **told})

    def window(self, corner: Point, width: float, height: float) -> Drawing:
        """Return a part of the drawing in the same units, beyond whose edges nothing shows."""
        inner = Drawing(width, height, "")
        x, y = (_n(value) for value in corner)
        size = {"width": _n(width), "height": _n(height)}
        box = f"{x} {y} {size['width']} {size['height']}"
        inner._root = SubElement(self._root, "svg", {"x": x, "y": y, **size, "viewBox": box})
        return inner

    def line(self, start: Point, end: Point, css: str) -> None:
        """Draw a straight line."""
        (x1, y1), (x2, y2) = start, end
        self._add("line", css, x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2))

    def rect(
        self, x: float, y: float, width: float, height: float, css: str, *, tip: str = ""
    ) -> Element:
        """Draw a rectangle; `tip` shows where the pointer rests."""
        numbers = {"x": x, "y": y, "width": max(0.0, width), "height": max(0.0, height)}
        return self._add("rect", css, tip, **{key: _n(value) for key, value in numbers.items()})

    def shade(self, box: Element, share: float) -> None:
        """Fill a rectangle with so much of its colour, in [0, 1]."""
        box.set("fill-opacity", _n(share))

    def circle(self, at: Point, radius: float, css: str, *, tip: str = "") -> None:
        """Draw a dot."""
        self._add("circle", css, tip, cx=_n(at[0]), cy=_n(at[1]), r=_n(radius))

    def path(self, points: Sequence[Point], css: str, *, closed: bool = False) -> None:
        """Draw a line through points, or the area within them."""
        if not points:
            return
        steps = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self._add("path", css, d=f"M{steps}{'Z' if closed else ''}")

    def text(
        self, at: Point, words: str, css: str = "", *, anchor: Anchor = "start", turn: float = 0
    ) -> None:
        """Write words; `turn` is in degrees, clockwise."""
        x, y = _n(at[0]), _n(at[1])
        turned = {"transform": f"rotate({_n(turn)} {x} {y})"} if turn else {}
        written = self._add("text", css, x=x, y=y, **{"text-anchor": anchor}, **turned)
        written.text = shown(words)

    def html(self) -> Markup:
        """Return the drawing as markup that needs no further escaping."""
        return Markup(tostring(self._root, encoding="unicode"))  # noqa: S704 - ElementTree escapes

    def _add(self, tag: str, css: str, tip: str = "", **attributes: str) -> Element:
        if css:
            attributes["class"] = css
        element = SubElement(self._root, tag, attributes)
        if tip:
            SubElement(element, "title").text = shown(tip)
        return element


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A linear scale from values to places.

    Args:
        low: value at `start`.
        high: value at `end`, above `low`.
        start: place.
        end: place; before `start` on a vertical axis.
        name: of what is measured.
        written: how a value at a tick is written.
        ticks: values that are marked.
    """

    low: float
    high: float
    start: float
    end: float
    name: str = ""
    written: Callable[[float], str] = "{:g}".format
    ticks: tuple[float, ...] = ()

    def at(self, value: float) -> float:
        """Return the place of a value."""
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Two axes on a drawing.

    Args:
        drawing: what is drawn on.
        inside: the part of it between the axes.
        x: horizontal.
        y: vertical.
    """

    drawing: Drawing
    inside: Drawing
    x: Axis
    y: Axis

    def point(self, x: float, y: float) -> Point:
        """Return the place of a pair of values."""
        return self.x.at(x), self.y.at(y)

    def line(self, points: Sequence[Point], css: str) -> None:
        """Draw a line through pairs of values, as far as it lies between the axes."""
        self.inside.path([self.point(x, y) for x, y in points], css)

    def whisker(self, x: float, low: float, high: float, css: str) -> None:
        """Draw an interval upright at x."""
        self.drawing.line(self.point(x, low), self.point(x, high), css)


WIDTH, HEIGHT = 460.0, 300.0
_EDGE = 2.0  # beyond the highest and lowest values, for the width of a line
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 22.0, 14.0, 48.0


def frame(label: str, x: Axis, y: Axis, *, height: float = HEIGHT) -> Frame:
    """Return axes of the usual size with their grid, ticks and names.

    Args:
        label: what the drawing shows.
        x: its ends are put in their places.
        y: likewise.
        height: of the drawing.
    """
    drawing = Drawing(WIDTH, height, label)
    across, up = _placed(x, _LEFT, WIDTH - _RIGHT), _placed(y, height - _BOTTOM, _TOP)
    _draw_axes(drawing, across, up)
    width, depth = WIDTH - _LEFT - _RIGHT, height - _TOP - _BOTTOM
    inside = drawing.window((_LEFT, _TOP - _EDGE), width, depth + 2 * _EDGE)
    return Frame(drawing=drawing, inside=inside, x=across, y=up)


def _draw_axes(drawing: Drawing, x: Axis, y: Axis) -> None:
    left, right, bottom = x.start, x.end, y.start
    for value in y.ticks:
        place = y.at(value)
        drawing.line((left, place), (right, place), "grid")
        drawing.text((left - 7, place + 4), y.written(value), "tick", anchor="end")
    for value in x.ticks:
        place = x.at(value)
        drawing.line((place, bottom), (place, bottom + 4), "axis")
        drawing.text((place, bottom + 18), x.written(value), "tick", anchor="middle")
    drawing.line((left, bottom), (right, bottom), "axis")
    drawing.text(((left + right) / 2, bottom + 37), x.name, "axis-name", anchor="middle")
    middle = (y.start + y.end) / 2
    drawing.text((13, middle), y.name, "axis-name", anchor="middle", turn=-90)


def axis(
    name: str,
    low: float,
    high: float,
    *,
    written: Callable[[float], str] = "{:g}".format,
    ticks: Sequence[float] | None = None,
) -> Axis:
    """Return an axis without a place; ticks are round numbers unless given."""
    high = high if high > low else low + 1
    found = round_steps(low, high) if ticks is None else ticks
    return Axis(low=low, high=high, start=0, end=1, name=name, written=written, ticks=tuple(found))


def round_steps(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return about `wanted` round numbers within [low, high], 1, 2 or 5 times a power of ten."""
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(count * step, 12) for count in range(first, last + 1)]


def per_cent(value: float) -> str:
    """Return a share as per cent, with no more digits than it needs."""
    return f"{100 * value:.4g}%"


def _placed(own: Axis, start: float, end: float) -> Axis:
    return replace(own, start=start, end=end)


def _n(value: float) -> str:
    """Return a number in no more characters than a drawing needs."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else str(int(value))
