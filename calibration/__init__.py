"""All that fits or measures: the command line, data sets, collection, thresholds, evaluation.

Also the training of the bundled reference agent. Imports `toolguard.guard` and
`toolguard.adapters`; nothing imports it.
"""

if __name__ != "toolguard.calibration":
    raise ImportError(
        f"import this package as toolguard.calibration, not as {__name__}; see CONTRIBUTING.md"
    )
