"""The laboratory's result as text a person can read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from toolguard.calibration.measuring.rate_text import percent_text

Cell = Mapping[str, Any]

_WIDTH = 38  # of the first column
_COLUMN = 17
_CALL_COLUMNS = {
    "switched": "switched",
    "parsed": "parses",
    "schema_valid": "fits schema",
    "schema_valid_after_switch": "fits, of switched",
    "values_kept": "values kept",
}


_MEETING = {
    "apart": "that part at the first token",
    "crowded": "that part there, the target's first token shared by a third tool",
    "colliding": "that share their first token",
}


def lab_table(result: Mapping[str, Any]) -> str:
    """Return all tables: by strength, by layer, and of whole calls, for each kind of prompt.

    Rates are in per cent, with their 95 % intervals.
    """
    records, settings = result["records"], result["settings"]
    source = "calibration saw" if records["donors_seen_in_calibration"] else "were set apart"
    model = (
        f"{result['model']}, {result['blocks']} blocks, profile's layer {result['profile_layer']}"
    )
    left_out = f"({records['near_duplicates_of_donors']} near duplicates left out)"
    lines = [
        f"steering of {model}",
        f"means of {records['donors']} records that {source}",
        f"steered are some of {records['subjects']} others {left_out}",
        "rates in % with 95 % intervals",
    ]
    for group in result["groups"]:
        lines += ["", *_group_lines(group, result["profile_layer"], settings)]
    return "\n".join(lines)


def _group_lines(
    group: Mapping[str, Any], layer: int, settings: Mapping[str, Any]
) -> Iterator[str]:
    title = f"{group['format']}, {group['turns']} turn, names {_MEETING[group['pairs']]}"
    yield f"== {title}: {group['n']} pairs on {group['records']} prompts"
    if group["why_fewer"]:
        yield f"fewer than wanted: {group['why_fewer']}"
    if not group["n"]:
        return
    cells = group["cells"]
    for none in (cell for cell in cells if cell["method"] == "none"):
        yield f"unsteered the source's name is written on {none['stayed']} of {none['n']}"
    alphas, layers = settings["alphas"], settings["layers"]
    yield ""
    yield from _sweep(
        f"switched by alpha, layer {layer}",
        [cell for cell in cells if cell["layer"] in (None, layer)],
        [(f"{alpha:g}", _at("alpha", alpha)) for alpha in alphas],
    )
    middle = min(alphas, key=lambda alpha: (abs(alpha - 1), alpha))
    yield ""
    yield from _sweep(
        f"switched by layer, alpha {middle:g}",
        [cell for cell in cells if cell["alpha"] == middle and _sweeps(cells, cell)],
        [(str(one), _at("layer", one)) for one in layers],
    )
    if group["whole_calls"]:
        yield ""
        yield from _call_lines(group["whole_calls"])


def _sweeps(cells: Iterable[Cell], cell: Cell) -> bool:
    """Tell whether the cell's method has other layers at that place, or the sweep has only one."""
    same = [
        c["layer"] for c in cells if (c["method"], c["place"]) == (cell["method"], cell["place"])
    ]
    every = {c["layer"] for c in cells} - {None}
    return cell["layer"] is not None and (len(set(same)) > 1 or len(every) == 1)


def _at(key: str, wanted: float) -> Callable[[Cell], bool]:
    return lambda cell: cell[key] in (None, wanted)


def _sweep(
    title: str,
    cells: Sequence[Cell],
    columns: Sequence[tuple[str, Callable[[Cell], bool]]],
) -> Iterator[str]:
    """Yield one line a method, one column a value; what has no such value fills the first one.

    Methods that switched nothing anywhere share a line.
    """
    yield _line(title, [name for name, _ in columns])
    idle: list[str] = []
    for name, own in _by_method(cells).items():
        if not any(cell["switched"]["value"] for cell in own):
            idle.append(name)
            continue
        told = [next((c for c in own if wanted(c)), None) for _, wanted in columns]
        fixed = len(own) == 1 < len(columns)
        shown = told[:1] if fixed else told
        yield _line(name, ["-" if c is None else percent_text(c["switched"]) for c in shown])
    if idle:
        bound = max(
            cell["switched"]["high"] or 0 for cell in cells if not cell["switched"]["value"]
        )
        yield f"0 everywhere, up to {100 * bound:.1f} at 95 %:"
        yield from wrap(", ".join(idle), width=100, initial_indent="  ", subsequent_indent="  ")


def _call_lines(cells: Sequence[Cell]) -> Iterator[str]:
    first = next((c for c in cells if c["layer"] is not None), None)
    where = "" if first is None else f", layer {first['layer']}, alpha {first['alpha']:g}"
    yield _line(f"whole calls{where}", [*_CALL_COLUMNS.values(), "n (values)"])
    for name, (cell,) in _by_method(cells).items():
        values = [percent_text(cell[key]) for key in _CALL_COLUMNS]
        yield _line(name, [*values, f"{cell['n']} ({cell['values_kept']['n']})"])


def _by_method(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Return the cells by method, norm and place, as they are told to people."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        place = " @partings" if cell["place"] == "partings" else ""
        norm = "" if cell["norm"] in (None, "natural") else f" ({cell['norm']})"
        found.setdefault(f"{cell['method']}{norm}{place}", []).append(cell)
    return found


def _line(first: str, rest: Iterable[str]) -> str:
    return (f"{first:<{_WIDTH}}" + "".join(f"{text:<{_COLUMN + 3}}" for text in rest)).rstrip()
