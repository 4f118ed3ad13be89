"""A local model whose tool calls are judged while it writes them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, StoppingCriteriaList

from toolguard.adapters.decision_token import name_tokens
from toolguard.adapters.loading import LoadedModel, wrap_model
from toolguard.adapters.name_watch import TokenTexts
from toolguard.adapters.request import (
    DeniedNameMask,
    GuardedRequest,
    Judged,
    MenuPlan,
    Row,
    WatchCriteria,
    banned_children,
)
from toolguard.adapters.text_stream import TextStream
from toolguard.adapters.turn_result import GuardedResult, OnConfirm, read_turn
from toolguard.adapters.wire.base import WireFormat
from toolguard.adapters.wire.detection import detect_format, get_format
from toolguard.adapters.wire.turn import opens_thought
from toolguard.guard.errors import ConfigError
from toolguard.guard.guard import Guard
from toolguard.guard.profile import MenuView, ModelFacts
from toolguard.guard.tools import Menu, Tool
from toolguard.guard.trie import NameTrie

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_NEW_TOKENS = 512
MENUS_KEPT = 64
REDIRECTS = 8  # redirected calls in one turn after which the rest is cut off
_UNSUPPORTED = {"num_beams": 1, "num_return_sequences": 1, "num_beam_groups": 1}
_OURS = ("streamer", "assistant_model", "prompt_lookup_num_tokens", "return_dict_in_generate", "inputs", "input_ids", "attention_mask")

ToolLike = Tool | Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedTokens:
    """What `generate_ids` gives: the sequences as HF `generate` returns them, and the decisions of each row.

    Args:
        sequences: (rows, length) int64, prompts included, as from the unguarded model where nothing was stopped.
        judged: per row, in the order written.
    """

    sequences: Tensor
    judged: tuple[tuple[Judged, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    text: str
    ids: list[int]
    written: list[int] = field(default_factory=list)  # tokens of the turn that stand in the prompt


class GuardedAgent:
    """Generates with a local model and judges each tool call before its arguments exist.

    The model is only hooked while it generates; threads may share one agent.

    Args:
        model: decoder-only transformers model in evaluation mode.
        tokenizer: its tokenizer, with a chat template.
        guard: judges; its profile must belong to this model.
        wire: format of calls by name; by default the profile's, else detected from the template.
        layers_path: dotted path to the decoder blocks, for an architecture that is not in the table.

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
    ) -> None:
        self._set_up(wrap_model(model, tokenizer, layers_path=layers_path), guard, wire)

    @classmethod
    def of(cls, loaded: LoadedModel, guard: Guard, *, wire: str | None = None) -> GuardedAgent:
        """Return an agent over a model that `load_model` gave."""
        agent = cls.__new__(cls)
        agent._set_up(loaded, guard, wire)
        return agent

    def _set_up(self, loaded: LoadedModel, guard: Guard, wire: str | None) -> None:
        self.loaded, self.guard = loaded, guard
        self.wire = self._wire_of(wire)
        if guard.profile is not None:
            guard.profile.verify(model_facts(loaded, self.wire))
            self.layer = guard.profile.meta.layer
        else:
            self.layer = max(0, len(loaded.view.blocks) - 2)
        self._texts = TokenTexts(loaded.tokenizer)
        self._plans: OrderedDict[str, MenuPlan] = OrderedDict()

    def _wire_of(self, name: str | None) -> WireFormat:
        if name is None and self.guard.profile is not None:
            name = self.guard.profile.meta.wire_format
        return get_format(name) if name else detect_format(self.loaded.tokenizer)

    def generate(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[ToolLike],
        *,
        prefill: str = "",
        on_text: Callable[[str], None] | None = None,
        on_confirm: OnConfirm | None = None,
        **generate_kwargs: Any,
    ) -> GuardedResult:
        """Return one assistant turn: its message, the calls that may run, and every decision.

        Args:
            messages: HF chat format.
            tools: tools or tool schemas, in prompt order.
            prefill: text the turn must begin with.
            on_text: called with pieces of plain text as they are written; text of a call is never passed.
            on_confirm: asked about each call that wants a person; without it such a call does not run.
            generate_kwargs: passed to HF `generate`.

        Raises:
            ConfigError: on an empty menu, a prompt longer than the context, or an option that cannot be guarded.
        """
        return self.generate_batch([messages], tools, prefill=prefill, on_text=on_text, on_confirm=on_confirm, **generate_kwargs)[0]

    async def agenerate(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[ToolLike], **options: Any) -> GuardedResult:
        """Return what `generate` does, from a worker thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.generate, messages, tools, **options)

    def generate_batch(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        tools: Sequence[ToolLike],
        *,
        prefill: str = "",
        on_text: Callable[[str], None] | None = None,
        on_confirm: OnConfirm | None = None,
        **generate_kwargs: Any,
    ) -> list[GuardedResult]:
        """Return one turn a conversation, generated together; see `generate`.

        Raises:
            ConfigError: as `generate`; also for `on_text` with more than one conversation.
        """
        if on_text is not None and len(conversations) != 1:
            raise ConfigError("on_text streams one conversation at a time", hint="call generate once a conversation")
        menu = Menu.of(tools)
        options = self._options(generate_kwargs)
        prompts = [self._prompt(messages, menu, prefill, options) for messages in conversations]
        plan = self._plan(menu, prompts[0].text.removesuffix(prefill))
        request = self._request(plan, hold=on_confirm is not None)
        rows = [self._add(request, prompt) for prompt in prompts]
        stream = TextStream(self.wire, on_text) if on_text else None
        output, cache = self._run(request, prompts, options, stream)
        results = []
        for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            row = self._follow_redirects(row, prompt, plan, options, cache if len(rows) == 1 else None, hold=on_confirm is not None)
            ended = bool(row.watcher.tokens) and row.watcher.tokens[-1] in self._end_tokens
            results.append(read_turn(row, plan, self.wire, self.guard, on_confirm=on_confirm, ended=ended))
            if stream is not None:
                stream.finish(results[index].message["content"])
        return results

    def generate_ids(self, input_ids: Tensor, attention_mask: Tensor, tools: Sequence[ToolLike], *, written: Sequence[Sequence[int]] | None = None, **generate_kwargs: Any) -> GuardedTokens:
        """Return the token sequences of HF `generate`, guarded; a row that is stopped is padded like a finished one.

        Redirects are not followed here: a redirected row ends at the name.

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
        options = self._options(generate_kwargs)
        last = input_ids[0][attention_mask[0].bool()][-32:]
        plan = self._plan(menu, self._texts.join(last.tolist()) if not written else "\n")
        request = self._request(plan, hold=False)
        lengths = attention_mask.sum(1).tolist()
        for index, length in enumerate(lengths):
            turn = list(written[index]) if written else []
            request.add_row(length - len(turn), written=turn)
        output = self._generate(request, plan, input_ids, attention_mask, options)
        return GuardedTokens(sequences=output.sequences, judged=tuple(tuple(row.judged) for row in request.rows))

    @property
    def _end_tokens(self) -> frozenset[int]:
        end = self.loaded.model.generation_config.eos_token_id
        ids = end if isinstance(end, list) else [end]
        return frozenset(i for i in [*ids, self.loaded.tokenizer.eos_token_id] if i is not None)

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        for key, only in _UNSUPPORTED.items():
            if given.get(key, only) not in (only, None):
                raise ConfigError(f"{key}={given[key]} cannot be guarded", hint="use greedy decoding or sampling")
        if refused := [key for key in _OURS if given.get(key) is not None]:
            raise ConfigError(
                f"{', '.join(refused)} cannot be passed to a guarded generate",
                hint="stream with on_text; prompts come from messages and tools",
            )
        options = dict(given)
        if options.get("max_new_tokens") is None and options.get("max_length") is None:
            options["max_new_tokens"] = DEFAULT_NEW_TOKENS
        return options

    def _prompt(self, messages: Sequence[Mapping[str, Any]], menu: Menu, prefill: str, options: Mapping[str, Any]) -> _Prompt:
        text = self.wire.render(self.loaded.tokenizer, messages, menu)
        ids = self._encode(text)
        written: list[int] = []
        if prefill:
            whole = self._encode(text + prefill)
            same = next((i for i, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), len(ids))
            ids, written = whole, whole[same:]
        self._check_length(len(ids), int(options.get("max_new_tokens") or 0))
        return _Prompt(text=text + prefill, ids=ids, written=written)

    def _encode(self, text: str) -> list[int]:
        return list(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _check_length(self, prompt: int, new: int) -> None:
        limit = getattr(self.loaded.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and prompt >= limit:
            raise ConfigError(
                f"the prompt has {prompt} tokens, the model's context holds {limit}",
                hint="offer fewer tools or shorten the conversation",
                prompt=prompt,
                context=limit,
                new=new,
            )

    def _plan(self, menu: Menu, context: str) -> MenuPlan:
        key = f"{menu.content_hash}:{context[-64:]}"
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._make_plan(menu, context)
            if len(self._plans) > MENUS_KEPT:
                self._plans.popitem(last=False)
        return plan

    def _make_plan(self, menu: Menu, context: str) -> MenuPlan:
        names = name_tokens(self.loaded.tokenizer, self.wire, menu.names, context)
        trie = NameTrie(names.paths)
        profile = self.guard.profile
        return MenuPlan(
            menu=menu,
            names=names,
            trie=trie,
            view=profile.view(menu) if profile is not None else _blank_view(menu, self.loaded.view.hidden_size),
            banned=banned_children(trie, self.guard.denied(menu.names)),
        )

    def _request(self, plan: MenuPlan, *, hold: bool) -> GuardedRequest:
        return GuardedRequest(
            self.loaded.view, self.layer, self.guard, plan, self._texts, self.wire, self._end_tokens, hold_for_person=hold
        )

    @staticmethod
    def _add(request: GuardedRequest, prompt: _Prompt) -> Row:
        lead = opens_thought(prompt.text) or ""
        return request.add_row(len(prompt.ids) - len(prompt.written), lead=lead, written=prompt.written)

    def _run(
        self, request: GuardedRequest, prompts: Sequence[_Prompt], options: Mapping[str, Any], stream: TextStream | None
    ) -> tuple[Any, DynamicCache | None]:
        pad = self._pad_token()
        width = max(len(prompt.ids) for prompt in prompts)
        device = self.loaded.device
        ids = torch.tensor([[pad] * (width - len(p.ids)) + p.ids for p in prompts], device=device)  # (rows, width)
        mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=device)
        cache = DynamicCache(config=self.loaded.model.config) if len(prompts) == 1 else None
        on_token = (lambda: stream.push(request.rows[0].watcher.text)) if stream else None
        output = self._generate(request, request_plan(request), ids, mask, options, cache=cache, on_token=on_token)
        return output, cache

    def _generate(
        self,
        request: GuardedRequest,
        plan: MenuPlan,
        input_ids: Tensor,
        attention_mask: Tensor,
        options: Mapping[str, Any],
        *,
        cache: DynamicCache | None = None,
        on_token: Callable[[], None] | None = None,
    ) -> Any:
        settings = dict(options)
        criteria = StoppingCriteriaList([*settings.pop("stopping_criteria", []), WatchCriteria(request, on_token)])
        processors = LogitsProcessorList(settings.pop("logits_processor", []))
        if plan.banned:
            processors.append(DeniedNameMask(request, plan.banned))
        if cache is not None:
            settings["past_key_values"] = cache
        if self.loaded.tokenizer.pad_token_id is None and "pad_token_id" not in settings:
            settings["pad_token_id"] = self._pad_token()
        with torch.no_grad(), request.attached(self.loaded.model):
            return self.loaded.model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                stopping_criteria=criteria,
                logits_processor=processors,
                return_dict_in_generate=True,
                **settings,
            )

    def _pad_token(self) -> int:
        tokenizer = self.loaded.tokenizer
        ids = (tokenizer.pad_token_id, *sorted(self._end_tokens), 0)
        return int(next(i for i in ids if i is not None))

    def _follow_redirects(
        self, row: Row, prompt: _Prompt, plan: MenuPlan, options: Mapping[str, Any], cache: DynamicCache | None, *, hold: bool
    ) -> Row:
        """Return the row with each redirected call written anew under its target's name.

        The cache is cropped to the decision token, so that only the forced name and what follows is computed.
        """
        base = prompt.ids[: len(prompt.ids) - len(prompt.written)]
        for _ in range(REDIRECTS):
            judged = row.pending_redirect
            if judged is None or judged.decision.target is None:
                return row
            turn = [*row.watcher.tokens[: judged.first_token], *plan.names.paths[judged.decision.target]]
            kept = len(base) + judged.first_token
            if cache is not None and cache.get_seq_length() >= kept:
                # One token is computed anew: generate needs at least one.
                cache.crop(kept - cache.get_seq_length()) if cache.get_seq_length() > kept else None
            else:
                cache = None
            request = self._request(plan, hold=hold)
            again = request.add_row(len(base), lead=opens_thought(prompt.text) or "", written=turn, skip_name=True)
            again.judged = list(row.judged)
            left = dict(options)
            if left.get("max_new_tokens") is not None:
                left["max_new_tokens"] = max(1, int(left["max_new_tokens"]) - (len(turn) - len(prompt.written)))
            ids = torch.tensor([base + turn], device=self.loaded.device)
            self._generate(request, plan, ids, torch.ones_like(ids), left, cache=cache)
            row = again
        return row


def request_plan(request: GuardedRequest) -> MenuPlan:
    """Return the menu plan of a request."""
    return request._plan


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


def _blank_view(menu: Menu, hidden_size: int) -> MenuView:
    return MenuView(
        names=menu.names,
        statuses=dict.fromkeys(menu.names, "unknown"),
        known=torch.zeros(0, dtype=torch.int64),
        readout=None,
        means=torch.zeros(0, hidden_size),
    )
