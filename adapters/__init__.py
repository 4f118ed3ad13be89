"""Everything that touches a foreign thing: Hugging Face models, wire formats, decoding, LangChain.

Also nnsight (imported only where it is used) and the bundled reference agent. Imports
`toolguard.guard` and never `toolguard.calibration`.
"""

if __name__ != "toolguard.adapters":
    raise ImportError(
        f"import this package as toolguard.adapters, not as {__name__}; see CONTRIBUTING.md"
    )
