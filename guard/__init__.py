"""The runtime of toolguard: values, readouts, policy and verdicts.

Loads neither transformers nor nnsight nor langchain, and imports no other part of toolguard.
"""

if __name__ != "toolguard.guard":
    raise ImportError(
        f"import this package as toolguard.guard, not as {__name__}; see CONTRIBUTING.md"
    )
