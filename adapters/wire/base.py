"""The interface of a wire format: how a conversation is put to a model and how calls are written.

A format has no state. `parse` and `find_name` read the same events (`_events`), so the guard, which
watches names while they are written, and the parser, which reads the whole turn, cannot disagree.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from toolguard.adapters.wire.prompting import (
    Message,
    normal_messages,
    render_with_tools,
    render_with_words,
    render_without_tools,
    tool_lines,
)
from toolguard.adapters.wire.turn import CallSpan, NameSpan, ParsedTurn, outside, without_turn_end
from toolguard.guard.errors import ParseError
from toolguard.guard.tools import Menu, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["NameSpan", "ParsedTurn", "WireFormat"]


class WireFormat(abc.ABC):
    """One way of writing tool calls as text.

    A `menu` is optional wherever calls are read or written: only Qwen3-Coder's XML, which does not
    mark the type of a value, looks at it.
    """

    name: ClassVar[str]
    """What `--format` calls it."""

    trigger: ClassVar[str]
    """A character of every token that can complete a name opening; empty if the prompt's end is
    the opening. `may_open` is the whole test, for formats with more than one such character."""

    how_to_call: ClassVar[str]
    """How to write calls, in our words, for a template that does not say so itself."""

    system_role: ClassVar[bool] = True
    """Whether to try a system turn for our words before folding them into the first user turn."""

    writes_arguments: ClassVar[bool] = True
    """Whether a call carries arguments; if not, they are somebody else's to fill in and check."""

    def render(
        self,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Mapping[str, Any]],
        menu: Menu,
    ) -> str:
        """Return the prompt text up to where the assistant turn begins.

        The template carries the tools if it can, whatever it tells the model about the format;
        else `instructions` does. Earlier calls and results are part of the prompt either way.

        Args:
            tokenizer: with a chat template.
            messages: HF chat format; arguments of calls as objects or as JSON text.
            menu: the tools on offer.

        Raises:
            ConfigError: if the conversation is malformed or the template refuses it.
            UnsupportedModel: if the tokenizer has no chat template.
        """
        ready = self._prepare(normal_messages(messages))
        text = render_with_tools(tokenizer, ready, menu)
        return text if text is not None else self._render_words(tokenizer, ready, menu)

    def render_plain(
        self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]
    ) -> str:
        """Return the prompt text of a turn without tools, else as `render`.

        Raises:
            ConfigError: as `render`.
            UnsupportedModel: as `render`.
        """
        return render_without_tools(
            tokenizer,
            self._prepare(normal_messages(messages)),
            write_calls=self.render_calls,
            system_role=self.system_role,
        )

    def _prepare(self, messages: list[Message]) -> list[Message]:
        """Return the messages with what this family's templates insist on."""
        return messages

    def _render_words(
        self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], menu: Menu
    ) -> str:
        return render_with_words(
            tokenizer,
            messages,
            self.instructions(menu),
            write_calls=lambda calls: self.render_calls(calls, menu=menu),
            system_role=self.system_role,
        )

    def instructions(self, menu: Menu) -> str:
        """Return the tools and the way to call them in words, for templates without tools."""
        return (
            "You can use these tools; each line describes one as JSON.\n"
            f"{tool_lines(menu)}\n\n"
            f"{self.how_to_call}\n"
            "If none of the tools fits the request, answer in plain words."
        )

    @abc.abstractmethod
    def prefix(self) -> str:
        """Return the canonical text from the turn's start to the name's first character."""

    @abc.abstractmethod
    def spell(self, name: str) -> str:
        """Return `name` as the format writes it.

        Raises:
            ConfigError: if the format cannot carry this name.
        """

    @abc.abstractmethod
    def call_end(self) -> str:
        """Return the canonical text that closes one call, after its arguments."""

    @abc.abstractmethod
    def call_text(self, call: ToolCall, *, menu: Menu | None = None) -> str:
        """Return one whole call as canonical text, prefix included.

        Raises:
            ConfigError: if the format cannot carry the name or the arguments.
        """

    def probe_text(self, name: str) -> str:
        """Return canonical text that holds `name` and what ends it, to find the tokens of both."""
        return self.call_text(ToolCall(name=name))

    def render_calls(self, calls: Sequence[ToolCall], *, menu: Menu | None = None) -> str:
        """Return the calls of one turn as canonical text: `parse` gives them back.

        Raises:
            ConfigError: if the format cannot carry a name or the arguments.
        """
        return "\n".join(self.call_text(call, menu=menu) for call in calls)

    def may_open(self, piece: str) -> bool:
        """Tell whether a token with text `piece` can complete a name opening."""
        return self.trigger in piece

    def parse(self, text: str, *, menu: Menu | None = None) -> ParsedTurn:
        """Return the content and the calls of a finished assistant turn.

        Nothing is skipped or repaired: text that opens a call is a whole call or an error.

        Args:
            text: the turn, special tokens kept; a mark that ends the turn may follow it.
            menu: types of the arguments, for formats that do not write them.

        Raises:
            ParseError: with fields `offset`, in characters, and `kind`, a `ParseErrorKind`.
        """
        turn = without_turn_end(text)
        spans = [event for event in self._events(turn, menu) if isinstance(event, CallSpan)]
        return ParsedTurn(content=outside(turn, spans), calls=tuple(span.call for span in spans))

    def parse_written(
        self, text: str, *, menu: Menu | None = None
    ) -> tuple[ParsedTurn, ParseError | None]:
        """Return the whole calls before the first fault, the text around them, and the fault.

        For a turn that was stopped in the middle of a call: the content ends where the unfinished
        call, or the malformed text, begins. A finished turn gives what `parse` does and None.
        """
        turn = without_turn_end(text)
        spans: list[CallSpan] = []
        name: NameSpan | None = None
        fault: ParseError | None = None
        try:
            for event in self._events(turn, menu):
                if isinstance(event, CallSpan):
                    spans.append(event)
                    name = None
                else:
                    name = event
        except ParseError as error:
            fault = error
        calls = tuple(span.call for span in spans)
        if fault is None and name is None:
            return ParsedTurn(content=outside(turn, spans), calls=calls), None
        # The opening stands right before the name; its first mark is where plain text ends.
        end = len(turn) if name is None else name.start
        mark = self.prefix().split("\n")[0]
        opening = turn.rfind(mark, spans[-1].end if spans else 0, end) if mark else 0
        content = outside(turn[: opening if opening >= 0 else end], spans).strip()
        return ParsedTurn(content=content, calls=calls), fault

    def find_name(self, text: str, start: int = 0) -> NameSpan | None:
        """Return the first tool name that opens at or after `start`, or None if there is none.

        Reads the turn from its beginning, so that a name is never found inside a thought or an
        argument. Text that `parse` refuses gives the names before the fault.

        Args:
            text: the turn as far as it is written.
            start: offset in `text`, usually the end of the name found before.
        """
        try:
            for event in self._events(text, None):
                if isinstance(event, NameSpan) and event.start >= start:
                    return event
        except ParseError:
            return None
        return None

    @abc.abstractmethod
    def _events(self, text: str, menu: Menu | None) -> Iterator[NameSpan | CallSpan]:
        """Yield each name as soon as it stands and each call once whole; raise ParseError."""
