"""The tools as points on a plane, and the test calls around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from toolguard.calibration.report.plot import Drawing, Point

_WIDTH, _HEIGHT, _EDGE = 1080.0, 580.0, 30.0
_MOST_CALLS = 2000
_DENSE = 30  # tools; more are drawn smaller


@dataclass(frozen=True, slots=True, kw_only=True)
class MapTool:
    """A tool's place; `calibrated` is false where the mean is a stand-in."""

    name: str
    at: Point
    calibrated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MapCall:
    """A test call's place and whether it was wrong; `tip` shows where the pointer rests."""

    at: Point
    wrong: bool
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    """Of a tool's dot and of its name's letters, in the drawing's units."""

    dot: float
    letter: float
    line: float
    css: str


_LARGE = _Size(dot=6, letter=7.8, line=16, css="tool-name")
_SMALL = _Size(dot=4, letter=6.4, line=13, css="tool-name small")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def map_chart(tools: Sequence[MapTool], calls: Sequence[MapCall]) -> Markup:
    """Return the map; a name that finds no free place is left to the pointer."""
    drawing = Drawing(_WIDTH, _HEIGHT, "Map of the tool means with the test calls around them")
    place = _scale([tool.at for tool in tools], [call.at for call in calls])
    shown, size = _some(calls), _SMALL if len(tools) > _DENSE else _LARGE
    for call in sorted(shown, key=lambda one: one.wrong):
        if call.wrong:
            _cross(drawing, place(call.at), call.tip)
        else:
            drawing.circle(place(call.at), 2.4, "call right")
    taken: list[_Box] = []
    for tool in tools:
        x, y = place(tool.at)
        r = size.dot
        taken.append(_Box(left=x - r, top=y - r, right=x + r, bottom=y + r))
        drawing.circle((x, y), r, "tool" if tool.calibrated else "tool stand-in", tip=tool.name)
    for tool in tools:
        _label(drawing, tool.name, place(tool.at), size, taken)
    return drawing.html()


class _Scale:
    """Brings both directions onto the drawing in one scale, so that distances stay true."""

    def __init__(self, low: Point, high: Point) -> None:
        self._middle = ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2)
        across, up = max(high[0] - low[0], 1e-9), max(high[1] - low[1], 1e-9)
        self._scale = min((_WIDTH - 2 * _EDGE) / across, (_HEIGHT - 2 * _EDGE) / up)

    def __call__(self, at: Point) -> Point:
        x = _WIDTH / 2 + (at[0] - self._middle[0]) * self._scale
        y = _HEIGHT / 2 - (at[1] - self._middle[1]) * self._scale
        # What lies beyond stands on the edge.
        return min(max(x, 4.0), _WIDTH - 4), min(max(y, 4.0), _HEIGHT - 4)


def _scale(tools: Sequence[Point], calls: Sequence[Point]) -> _Scale:
    """Return a scale that holds all tools and nearly all calls."""
    low, high = [], []
    for direction in (0, 1):
        own = sorted(point[direction] for point in calls)
        ends = own[len(own) // 50 : len(own) - len(own) // 50]
        values = [*(point[direction] for point in tools), *(ends[:1] + ends[-1:])]
        low.append(min(values))
        high.append(max(values))
    return _Scale((low[0], low[1]), (high[0], high[1]))


def _some(calls: Sequence[MapCall]) -> Sequence[MapCall]:
    """Return every call, or evenly spread ones and all wrong ones where there are too many."""
    step = -(-len(calls) // _MOST_CALLS)
    return [call for place, call in enumerate(calls) if call.wrong or place % max(step, 1) == 0]


def _cross(drawing: Drawing, at: Point, tip: str) -> None:
    x, y = at
    drawing.line((x - 3.4, y - 3.4), (x + 3.4, y + 3.4), "call wrong")
    drawing.line((x - 3.4, y + 3.4), (x + 3.4, y - 3.4), "call wrong")
    drawing.circle(at, 5, "unseen", tip=tip)


def _label(drawing: Drawing, name: str, at: Point, size: _Size, taken: list[_Box]) -> None:
    """Write the name beside its point where it meets no dot and nothing written before."""
    wide, high, gap = size.letter * len(name), size.line, size.dot + 3
    x, y = at
    lefts = (x + gap, x - gap - wide, x - wide / 2, x - wide / 2)
    tops = (y - high / 2, y - high / 2, y - gap - high, y + gap)
    for left, top in zip(lefts, tops, strict=True):
        box = _Box(left=left, top=top, right=left + wide, bottom=top + high)
        inside = left > 2 and top > 2 and box.right < _WIDTH - 2 and box.bottom < _HEIGHT - 2
        if inside and not any(box.meets(other) for other in taken):
            taken.append(box)
            drawing.text((left, top + 0.75 * high), name, size.css)
            return
