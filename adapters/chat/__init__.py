"""LangChain's chat model over a guarded agent: `chat_model.GuardedChatModel`."""

if __name__ != "toolguard.adapters.chat":
    raise ImportError(
        f"import this package as toolguard.adapters.chat, not as {__name__}; see CONTRIBUTING.md"
    )
