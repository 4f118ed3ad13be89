"""The guard at the tool boundary of a LangChain agent: `ToolguardMiddleware` for `create_agent`.

Importing this package imports langchain; importing `toolguard.adapters` does not.
"""

if __name__ != "toolguard.adapters.agent_middleware":
    raise ImportError(
        f"import this package as toolguard.adapters.agent_middleware, not as {__name__}; "
        "see CONTRIBUTING.md"
    )

from toolguard.adapters.agent_middleware.middleware import ToolguardMiddleware, role_in_context

__all__ = ["ToolguardMiddleware", "role_in_context"]
