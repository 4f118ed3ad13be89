"""Labelled records: files, menus, near duplicates, splits, and the choice among them."""
