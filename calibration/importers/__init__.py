"""Importers from upstream data sets to the project's record format, one file a data set."""
