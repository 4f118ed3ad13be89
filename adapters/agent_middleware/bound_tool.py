"""A tool bound to one call as it was let in, whatever stands between the gate and the tool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool

from toolguard.adapters.agent_middleware.blocked import blocked_message
from toolguard.guard.seal import Seal

EDITED = "edited"


class BoundTool(BaseTool):
    """Runs its tool for one call: same id, name and arguments as were let in, or not at all.

    Middleware that stands behind the guard's may change a request after the gate has seen it. What
    LangGraph injects comes under names that the model is not told of.

    Args:
        inner: the tool.
        call_id: of the call.
        names: of the arguments that were let in.
        told: names of all arguments that the model is told of.
        digest: of these arguments.
        seal: made the digest.
    """

    inner: BaseTool
    call_id: str
    names: tuple[str, ...]
    told: frozenset[str]
    digest: str
    seal: Seal

    @classmethod
    def of(
        cls, tool: BaseTool, call: Mapping[str, Any], told: Iterable[str], seal: Seal
    ) -> BoundTool:
        """Return the tool, bound to the call; see the class."""
        arguments = dict(call["args"])
        return cls(
            name=tool.name,
            description=tool.description,
            args_schema=tool.args_schema or tool.get_input_schema(),
            return_direct=tool.return_direct,
            response_format=tool.response_format,
            tags=tool.tags,
            metadata=tool.metadata,
            inner=tool,
            call_id=call["id"],
            names=tuple(arguments),
            told=frozenset(told),
            digest=seal.digest(arguments),
            seal=seal,
        )

    @property
    def func(self) -> Any:
        """The function whose annotations say what LangGraph injects."""
        return getattr(self.inner, "func", None) or getattr(self.inner, "coroutine", None)

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002 - LangChain's
        """Return the tool's answer, or an error if this is not the call that was let in."""
        return self._refusal(input) or self.inner.invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002 - LangChain's
        """Return the tool's answer, or an error if this is not the call that was let in."""
        return self._refusal(input) or await self.inner.ainvoke(input, config, **kwargs)

    def _run(self, *_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError("a bound tool is invoked with its whole call")

    def _refusal(self, call: Any) -> ToolMessage | None:
        same = isinstance(call, Mapping) and call.get("id") == self.call_id
        if same and call.get("name") == self.name and self._holds(call.get("args")):
            return None
        why = f"{self.name}: the call was changed after it was let in, so it did not run."
        return blocked_message(self.seal, self.call_id, self.name, why, EDITED)

    def _holds(self, arguments: Any) -> bool:
        if not isinstance(arguments, Mapping) or not set(self.names) <= set(arguments):
            return False
        added = set(arguments) - set(self.names)
        let_in = {name: arguments[name] for name in self.names}
        try:
            return not added & self.told and self.seal.digest(let_in) == self.digest
        except (TypeError, ValueError, RecursionError):  # no JSON: not what was let in
            return False
