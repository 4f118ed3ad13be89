"""The published claims beside numbers of one's own, row by row."""
