"""The commands of `toolguard`: one module each, whose click command is named `command`."""

if __name__ != "toolguard.calibration.commands":
    raise ImportError(
        f"import this package as toolguard.calibration.commands, not as {__name__}; "
        "see CONTRIBUTING.md"
    )
