"""Signals at a decision, each turned into a risk that the call is wrong."""
