"""JSON calls from a model without tool tokens, as our prompt asks for them; made for Gemma 2 and 3.

One `{"name": "N", "arguments": {...}}` a line. The template is never given the tools and there is
no system role: the instructions stand at the head of the first user turn. `bare_json` says what
else is read and what is content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from toolguard.adapters.wire.bare_json import BareJson
from toolguard.adapters.wire.prompting import normal_messages
from toolguard.guard.tools import Menu

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class GemmaJson(BareJson):
    """Bare objects with "arguments", asked for in words."""

    name: ClassVar[str] = "gemma_json"
    arguments_key: ClassVar[str] = "arguments"
    system_role: ClassVar[bool] = False
    how_to_call: ClassVar[str] = (
        "To use a tool, answer with this JSON object alone, one a line if several are needed, "
        "without a code fence:\n"
        '{"name": "TOOL", "arguments": {"ARGUMENT": VALUE}}'
    )

    def render(
        self,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Mapping[str, Any]],
        menu: Menu,
    ) -> str:
        """Return the prompt with our instructions in the first user turn."""
        return self._render_words(tokenizer, normal_messages(messages), menu)
