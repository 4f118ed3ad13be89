"""How well signals tell wrong calls, with intervals, and a profile on fresh calls."""
