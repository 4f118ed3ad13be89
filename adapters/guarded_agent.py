"""A local model whose tool calls are judged while it writes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, StoppingCriteriaList

from toolguard.adapters.decoding_steps import DeniedNameMask, RequiredNameMask, WatchCriteria
from toolguard.adapters.generate_options import GenerateOptions
from toolguard.adapters.loading import LoadedModel, wrap_model
from toolguard.adapters.menu_plan import MenuPlan, MenuPlans
from toolguard.adapters.name_watch import TokenTexts
from toolguard.adapters.redirect import follow_redirects
from toolguard.adapters.request import GuardedRequest, Judged, Row
from toolguard.adapters.second_question import favourite_between
from toolguard.adapters.text_stream import TextStream
from toolguard.adapters.text_turn import write_text
from toolguard.adapters.turn_prompt import (
    TurnPrompt,
    check_room,
    left_padded,
    opening_call,
    render_prompt,
    room_after,
)
from toolguard.adapters.turn_result import GuardedResult, OnConfirm, read_turn
from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.detection import choose_format
from toolguard.adapters.wire.turn import opens_thought
from toolguard.guard.decision import Decision
from toolguard.guard.errors import ConfigError, ToolguardError
from toolguard.guard.guard import Guard
from toolguard.guard.profile import ModelFacts
from toolguard.guard.tools import Menu, Tool

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ToolLike = Tool | Mapping[str, Any]
Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedTokens:
    """What `generate_ids` gives: sequences as HF `generate` returns them, and the decisions.

    Args:
        sequences: (rows, length) int64, prompts included, as from the unguarded model where nothing
            was stopped.
        judged: per row, in the order written.
    """

    sequences: Tensor
    judged: tuple[tuple[Judged, ...], ...]


class GuardedAgent:
    """Generates with a local model and judges each tool call before its arguments exist.

    The model is only hooked while it generates; threads may share one agent.

    Args:
        model: decoder-only transformers model in evaluation mode.
        tokenizer: its tokenizer, with a chat template.
        guard: judges; its profile must belong to this model.
        wire: format of calls by name; by default the profile's, else detected from the template.
        layers_path: dotted path to the decoder blocks, for an architecture that is not in the
            table.
        loaded: model and tokenizer as `load_model` gave them, to skip the self-check; see `of`.

    Raises:
        ArtifactMismatch: if the profile belongs to another model, tokenizer or template.
        UnsupportedModel: if the model or its template cannot be read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        guard: Guard,
        *,
        wire: str | None = None,
        layers_path: str | None = None,
        loaded: LoadedModel | None = None,
    ) -> None:
        self.loaded = loaded or wrap_model(model, tokenizer, layers_path=layers_path)
        self.guard = guard
        self.wire = _wire_of(wire, guard, self.loaded)
        self.layer = max(0, len(self.loaded.view.blocks) - 2)
        if guard.profile is not None:
            guard.profile.verify(model_facts(self.loaded, self.wire))
            self.layer = guard.profile.meta.layer
        self._texts = TokenTexts(self.loaded.tokenizer, self.wire)
        self._plans = MenuPlans(self.loaded, self.wire, guard)

    @classmethod
    def of(cls, loaded: LoadedModel, guard: Guard, *, wire: str | None = None) -> GuardedAgent:
        """Return an agent over a model that `load_model` gave."""
        return cls(loaded.model, loaded.tokenizer, guard, wire=wire, loaded=loaded)

    def generate(
        self,
        messages: Conversation,
        tools: Sequence[ToolLike],
        *,
        prefill: str = "",
        must_call: Collection[str] = (),
        on_text: Callable[[str], None] | None = None,
        on_confirm: OnConfirm | None = None,
        hold: bool = False,
        **generate_kwargs: Any,
    ) -> GuardedResult:
        """Return one assistant turn: its message, the calls that may run, and every decision.

        Args:
            messages: HF chat format.
            tools: tools or tool schemas, in prompt order. Without any the turn is text: what looks
                like a call in it is not one.
            prefill: text the turn must begin with.
            must_call: names of which one must open the turn; it is judged like any other.
            on_text: called with pieces of plain text as they are written; text of a call is never
                passed.
            on_confirm: asked about each call that wants a person; without it such a call does not
                run.
            hold: write such a call to its end, to ask about it later: it stands in `judged` alone,
                and the message leaves all that does not run to whoever asks.
            generate_kwargs: passed to HF `generate`; 512 new tokens unless they say otherwise, and
                never more than the context holds.

        Raises:
            ConfigError: on a menu that cannot be used, a prompt longer than the context, or an
                option that cannot be guarded.
        """
        results = self.generate_batch(
            [messages],
            tools,
            prefill=prefill,
            must_call=must_call,
            on_text=on_text,
            on_confirm=on_confirm,
            hold=hold,
            **generate_kwargs,
        )
        return results[0]

    async def agenerate(
        self, messages: Conversation, tools: Sequence[ToolLike], **options: Any
    ) -> GuardedResult:
        """Return what `generate` does, from a worker thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.generate, messages, tools, **options)

    def generate_batch(
        self,
        conversations: Sequence[Conversation],
        tools: Sequence[ToolLike],
        *,
        prefill: str = "",
        must_call: Collection[str] = (),
        on_text: Callable[[str], None] | None = None,
        on_confirm: OnConfirm | None = None,
        hold: bool = False,
        **generate_kwargs: Any,
    ) -> list[GuardedResult]:
        """Return one turn a conversation, generated together; see `generate`.

        Raises:
            ConfigError: as `generate`; also for `on_text` with more than one conversation.
        """
        if on_text is not None and len(conversations) > 1:
            raise ConfigError(
                "on_text streams one conversation at a time",
                hint="call generate once a conversation",
            )
        if prefill and must_call:
            raise ConfigError("prefill and must_call both open the turn", hint="pass one of them")
        menu = Menu.of(tools) if tools else None
        options = GenerateOptions.of(self.loaded, generate_kwargs)
        prompts = [
            render_prompt(self.loaded, self.wire, messages, menu, prefill)
            for messages in conversations
        ]
        if not prompts:
            return []
        if menu is None:
            return write_text(self.loaded, prompts, options, must_call, on_text)
        plan = self._plans.get(menu, prompts[0].text)
        if must_call:
            plan = plan.calling(must_call)
            opening = plan.names.prefix_ids
            prompts = [opening_call(self.loaded, prompt, opening) for prompt in prompts]
        stream = TextStream(self.wire, on_text) if on_text else None
        whole = hold or on_confirm is not None
        rows = self._write(prompts, conversations, plan, options, stream, hold=whole)
        read = partial(read_turn, on_confirm=on_confirm, notice=not hold)
        results = [read(row, plan, self.wire, self.guard, options.end_tokens) for row in rows]
        if stream is not None:
            stream.finish(results[0].message["content"])
        return results

    def generate_ids(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        tools: Sequence[ToolLike],
        *,
        written: Sequence[Sequence[int]] | None = None,
        **generate_kwargs: Any,
    ) -> GuardedTokens:
        """Return the sequences of HF `generate`, guarded.

        A row that is stopped is padded like a finished one, from the token on that completed the
        name. Redirects are not followed here: a redirected row ends at the name.

        Args:
            input_ids: (rows, length) int64 prompts, padded on either side.
            attention_mask: (rows, length), 0 at padding.
            tools: the menu.
            written: per row, the tokens at the prompt's end that belong to the assistant's turn.
            generate_kwargs: passed to HF `generate`.

        Raises:
            ConfigError: on an empty menu or an option that cannot be guarded.
        """
        menu = Menu.of(tools)
        options = GenerateOptions.of(self.loaded, generate_kwargs)
        turns = [list(turn) for turn in written] if written else [[] for _ in input_ids]
        real = attention_mask.bool()
        prompts = [
            ids[kept].tolist()[: -len(turn) or None]
            for ids, kept, turn in zip(input_ids, real, turns, strict=True)
        ]
        tails = [self._texts.join(prompt[-32:]) for prompt in prompts]
        request = self._request(self._plans.get(menu, tails[0]), options, hold=False)
        for prompt, tail, turn, kept in zip(prompts, tails, turns, real, strict=True):
            lead = opens_thought(tail) or ""
            request.add_row(len(prompt), lead=lead, written=turn, blind=not bool(kept[-1]))
        width = input_ids.shape[1]
        room = options.room(width)
        output = self._generate(request, options, input_ids, attention_mask, new_tokens=room)
        for sequence, row, turn in zip(output.sequences, request.rows, turns, strict=True):
            if row.stopped_by_guard:
                sequence[width + len(row.watcher.tokens) - len(turn) :] = options.pad_token
        judged = tuple(tuple(row.judged) for row in request.rows)
        return GuardedTokens(sequences=output.sequences, judged=judged)

    def _write(
        self,
        prompts: Sequence[TurnPrompt],
        conversations: Sequence[Conversation],
        plan: MenuPlan,
        options: GenerateOptions,
        stream: TextStream | None,
        *,
        hold: bool,
    ) -> list[Row]:
        """Return the finished row of each prompt, redirects followed."""
        request = self._request(plan, options, hold=hold)
        rows = [_add(request, prompt) for prompt in prompts]
        ids, mask = left_padded(prompts, options.pad_token, self.loaded.device)
        room = room_after(self.loaded, ids.shape[1], options.room(ids.shape[1]))
        cache = self._own_cache(options) if len(prompts) == 1 else None
        tell = partial(_tell, stream, rows[0], options.end_tokens) if stream else None
        self._generate(request, options, ids, mask, new_tokens=room, cache=cache, on_token=tell)
        return [
            follow_redirects(
                row,
                prompt,
                plan,
                cache,
                partial(
                    self._go_on, plan, options, hold=hold, turn_tokens=len(prompt.written) + room
                ),
                partial(self._ask_between, plan, messages),
            )
            for row, prompt, messages in zip(rows, prompts, conversations, strict=True)
        ]

    def _ask_between(
        self, plan: MenuPlan, messages: Conversation, decision: Decision, written: Sequence[int]
    ) -> Decision:
        """Return the decision with the model's answer; one that cannot be had closes the call."""
        names = [name for name in (decision.tool, decision.target) if name is not None]
        try:
            picked = favourite_between(self.loaded, self.wire, messages, plan, names, written)
        except ToolguardError as error:
            return self.guard.unanswered(decision, error)
        return self.guard.answered(decision, picked)

    def _go_on(
        self,
        plan: MenuPlan,
        options: GenerateOptions,
        prompt: TurnPrompt,
        cache: DynamicCache | None,
        judged: Sequence[Judged],
        *,
        hold: bool,
        turn_tokens: int,
    ) -> Row:
        """Return the row that goes on after a forced name, within `turn_tokens` for the turn."""
        request = self._request(plan, options, hold=hold)
        row = _add(request, prompt, forced=True)
        row.judged = list(judged)
        room = room_after(self.loaded, len(prompt.ids), turn_tokens - len(prompt.written))
        if room > 0 and prompt.written[-1] not in options.end_tokens:
            ids, mask = left_padded([prompt], options.pad_token, self.loaded.device)
            self._generate(request, options, ids, mask, new_tokens=room, cache=cache)
        return row

    def _own_cache(self, options: GenerateOptions) -> DynamicCache | None:
        """Return a cache to keep after `generate`, if a redirect may want it."""
        if not options.plain_cache or self.guard.monitoring or not self.guard.policy.redirects:
            return None
        return DynamicCache(config=self.loaded.model.config.get_text_config(decoder=True))

    def _request(self, plan: MenuPlan, options: GenerateOptions, *, hold: bool) -> GuardedRequest:
        return GuardedRequest(
            self.loaded.view,
            self.layer,
            self.guard,
            plan,
            self._texts,
            options.end_tokens,
            hold_for_person=hold,
        )

    def _generate(
        self,
        request: GuardedRequest,
        options: GenerateOptions,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        new_tokens: int,
        cache: DynamicCache | None = None,
        on_token: Callable[[], None] | None = None,
    ) -> Any:
        check_room(input_ids.shape[1], new_tokens)
        settings = options.settings(new_tokens)
        criteria = [*(settings.pop("stopping_criteria", None) or [])]
        processors = [*(settings.pop("logits_processor", None) or [])]
        if request.plan.must_call:
            processors.append(RequiredNameMask(request))
        if request.plan.banned:
            processors.append(DeniedNameMask(request))
        if cache is not None:
            settings["past_key_values"] = cache
        model: Any = self.loaded.model
        with torch.no_grad(), request.attached(model):
            output = model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                stopping_criteria=StoppingCriteriaList(
                    [*criteria, WatchCriteria(request, on_token)]
                ),
                logits_processor=LogitsProcessorList(processors),
                **settings,
            )
        request.finish(options.pad_token)
        return output


def _add(request: GuardedRequest, prompt: TurnPrompt, *, forced: bool = False) -> Row:
    return request.add_row(
        len(prompt.before), lead=prompt.lead, written=prompt.written, forced=forced
    )


def _tell(stream: TextStream, row: Row, ends: frozenset[int]) -> None:
    stream.push(row.watcher.text_before(ends))


def _wire_of(name: str | None, guard: Guard, loaded: LoadedModel) -> WireFormat:
    if name is None and guard.profile is not None:
        name = guard.profile.meta.wire_format
    return choose_format(name, loaded.tokenizer)


def model_facts(loaded: LoadedModel, wire: WireFormat) -> ModelFacts:
    """Return what a profile is checked against."""
    return ModelFacts(
        fingerprint=loaded.fingerprint,
        template_hash=loaded.template_hash,
        tokenizer_hash=loaded.tokenizer_hash,
        wire_format=wire.name,
        hidden_size=loaded.view.hidden_size,
        blocks=len(loaded.view.blocks),
    )
