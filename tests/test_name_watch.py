"""Following names token by token: every format, several tokenizers, and texts that only look it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import tiny_tokenizers
from hypothesis import given
from hypothesis import strategies as st

from toolguard.adapters.decision_token import NameTokens, name_tokens
from toolguard.adapters.name_watch import NAME_LIMIT, NameWatcher, NameWritten, TokenTexts
from toolguard.adapters.wire.detection import FORMATS
from toolguard.guard.tools import ToolCall
from toolguard.guard.trie import NameTrie

NAMES = ("get", "get_weather", "get_time", "search", "searchWeb", "météo.heure")
CONTEXT = "<|im_start|>assistant\n"
SPLITS = {"words": tiny_tokenizers.WORDS, "apart": tiny_tokenizers.APART, "free": None}
WITH_ARGUMENTS = sorted(set(FORMATS) - {"name_only"})


@cache
def tokenizer_of(split: str) -> Any:
    bpe = tiny_tokenizers.byte_level_bpe(SPLITS[split])
    return tiny_tokenizers.with_template(tiny_tokenizers.PLAIN, bpe)


@dataclass(frozen=True)
class Watch:
    """One format on one tokenizer."""

    wire: str
    split: str
    names: NameTokens
    trie: NameTrie

    @property
    def tokenizer(self) -> Any:
        return tokenizer_of(self.split)

    def watcher(self, lead: str = "") -> NameWatcher:
        texts = TokenTexts(self.tokenizer, FORMATS[self.wire])
        return NameWatcher(texts, self.trie, self.names, lead)

    def ids(self, text: str) -> list[int]:
        """Return the tokens of `text` behind the prompt, as a model would write them."""
        begin = len(self.tokenizer(CONTEXT)["input_ids"])
        return self.tokenizer(CONTEXT + text)["input_ids"][begin:]

    def characters(self, text: str) -> list[int]:
        """Return tokens of one byte each: the least canonical spelling there is."""
        return [i for c in text for i in self.tokenizer(c)["input_ids"]]


@cache
def watch(wire: str, split: str = "apart", names: tuple[str, ...] = NAMES) -> Watch:
    tokens = name_tokens(tokenizer_of(split), FORMATS[wire], names, CONTEXT)
    return Watch(wire, split, tokens, NameTrie(tokens.paths))


def follow(watcher: NameWatcher, tokens: list[int]) -> tuple[list[NameWritten], list[int]]:
    """Return the names and after how many tokens the watcher stood at a decision."""
    decisions = [0] if watcher.at_decision else []
    found: list[NameWritten] = []
    for token in tokens:
        found += watcher.feed(token)
        if watcher.at_decision:
            decisions.append(len(watcher.tokens))
    return found, decisions


def call_text(wire: str, name: str) -> str:
    text = FORMATS[wire].call_text(ToolCall(name=name))
    return f"{text}\n" if wire == "name_only" else text


def watches(wire: str, split: str) -> Watch:
    try:
        return watch(wire, split)
    except Exception as error:  # noqa: BLE001 - some tokenizers cannot carry some formats
        pytest.skip(str(error))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("wire", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_a_canonical_call_is_met_at_its_decision_token(wire: str, split: str, name: str) -> None:
    """Whatever the tokenizer fuses, the decision is where calibration reads it, and once."""
    case = watches(wire, split)
    found, decisions = follow(case.watcher(), case.ids(call_text(wire, name)))
    assert [written.name for written in found] == [name]
    assert found[0].canonical
    assert found[0].calibrated_token
    assert found[0].first_token == len(case.names.prefix_ids)
    assert found[0].first_token in decisions


@pytest.mark.parametrize("wire", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_spelled_in_single_bytes_is_found_and_not_canonical(wire: str, name: str) -> None:
    """The characters decide which name was written; its tokens are known to be others."""
    case = watch(wire)
    found, _ = follow(case.watcher(), case.characters(call_text(wire, name)))
    assert [written.name for written in found] == [name]
    spelled = case.characters(FORMATS[wire].spell(name))
    if list(case.names.paths[name][: len(spelled)]) != spelled:
        assert not found[0].canonical


@pytest.mark.parametrize("wire", WITH_ARGUMENTS)
def test_two_calls_are_two_names(wire: str) -> None:
    """Each call of a turn is met on its own, in order, with its own place."""
    case = watch(wire)
    calls = [ToolCall(name="search"), ToolCall(name="get_time")]
    text = FORMATS[wire].render_calls(calls)
    watcher = case.watcher()
    found, _ = follow(watcher, case.ids(text))
    assert [written.name for written in found] == ["search", "get_time"]
    starts = [call.start for call in FORMATS[wire].parse(watcher.text).calls]
    assert [written.start for written in found] == starts


@pytest.mark.parametrize("wire", sorted(set(WITH_ARGUMENTS) - {"pythonic"}))
def test_a_second_call_is_read_like_the_first(wire: str) -> None:
    """In formats that repeat their opening, a later name is canonical and at its token too."""
    case = watch(wire)
    text = FORMATS[wire].render_calls([ToolCall(name="search"), ToolCall(name="get_time")])
    found, decisions = follow(case.watcher(), case.ids(text))
    assert [written.canonical for written in found] == [True, True]
    assert found[1].calibrated_token
    assert found[1].first_token in decisions


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        ("hermes", '<tool_call>{"name":"search","arguments":{}}</tool_call>'),
        ("hermes", '<tool_call>\n\n{ "name" :\n"search", "arguments": {}}\n</tool_call>'),
        ("llama_json", '{"name":"search","parameters":{}}'),
        ("llama_json", '<|python_tag|>{"name": "search", "parameters": {}}'),
        ("gemma_json", '```json\n{"name": "search", "arguments": {}}\n```'),
        ("mistral", "[TOOL_CALLS] search[ARGS]{}"),
        ("mistral", "[TOOL_CALLS]search{}"),
        ("qwen3_coder", "<tool_call><function=search>\n</function></tool_call>"),
        ("pythonic", "[ search()]"),
        ("pythonic", "[search ( )]"),
        ("name_only", "\n search \n"),
    ],
)
def test_other_white_space_hides_no_name(wire: str, text: str) -> None:
    """What the parser tolerates the watcher meets, at the same place."""
    case = watch(wire)
    for tokens in (case.ids(text), case.characters(text)):
        watcher = case.watcher()
        found, _ = follow(watcher, tokens)
        assert [written.name for written in found] == ["search"]
        assert found[0].start == FORMATS[wire].parse(watcher.text).calls[0].start


def test_arguments_before_the_name_are_not_the_calibrated_token() -> None:
    """Calibration never saw arguments in front of the decision."""
    case = watch("hermes")
    text = '<tool_call>\n{"arguments": {"q": "x"}, "name": "search"}\n</tool_call>'
    found, _ = follow(case.watcher(), case.ids(text))
    assert [written.name for written in found] == ["search"]
    assert not found[0].calibrated_token


@pytest.mark.parametrize("wire", WITH_ARGUMENTS)
def test_plain_text_before_a_call_changes_nothing(wire: str) -> None:
    """A call after a sentence is met at the same kind of token."""
    case = watch(wire)
    text = "I will look.\n" + call_text(wire, "get_time")
    watcher = case.watcher()
    found, _ = follow(watcher, case.ids(text))
    assert [written.name for written in found] == ["get_time"]
    assert (found[0].canonical, found[0].calibrated_token) == (True, True)


@pytest.mark.parametrize("wire", WITH_ARGUMENTS)
def test_calls_in_a_thought_are_no_calls(wire: str) -> None:
    """Inside a thought nothing is met; the call after it is."""
    case = watch(wire)
    text = f"<think>\n{call_text(wire, 'search')}\n</think>\n{call_text(wire, 'get_time')}"
    found, _ = follow(case.watcher(), case.ids(text))
    assert [written.name for written in found] == ["get_time"]


@pytest.mark.parametrize("wire", WITH_ARGUMENTS)
def test_a_thought_opened_in_the_prompt_hides_its_calls(wire: str) -> None:
    """The lead counts as the turn's beginning."""
    case = watch(wire)
    inside = f"{call_text(wire, 'search')}\n</think>\n{call_text(wire, 'get_time')}"
    found, _ = follow(case.watcher("<think>"), case.ids(inside))
    assert [written.name for written in found] == ["get_time"]


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        ("pythonic", "[1] is a footnote, [2, 3] a list.\n[get_time()]"),
        ("pythonic", "[ ]\n[get_time()]"),
        ("pythonic", "[not a call]\n[x, y]\n[get_time()]"),
        ("llama_json", 'Set {"a": 1} first.\n{"name": "get_time", "parameters": {}}'),
        ("gemma_json", 'He said "so". {"name": "get_time", "arguments": {}}'),
        ("hermes", f'It is "fine" [1] {{"name": "search"}} {call_text("hermes", "get_time")}'),
    ],
)
def test_prose_that_looks_like_an_opening_is_passed_over(wire: str, text: str) -> None:
    """A footnote, an object or a quotation is no call, and hides none that follows."""
    case = watch(wire)
    for tokens in (case.ids(text), case.characters(text)):
        watcher = case.watcher()
        found, _ = follow(watcher, tokens)
        assert [written.name for written in found] == ["get_time"]


def test_one_token_may_end_prose_and_open_a_call() -> None:
    """A token that holds the end of one bracket and the beginning of the next misses no name."""
    corpus = ["1]\n[get_time()"] * 50
    bpe = tiny_tokenizers.byte_level_bpe(None, corpus=corpus, merges=200)
    tokenizer = tiny_tokenizers.with_template(tiny_tokenizers.PLAIN, bpe)
    wire = FORMATS["pythonic"]
    names = NameTokens(prefix_ids=tuple(tokenizer("[")["input_ids"]), paths={"get_time": (1,)})
    for text in ("[1]\n[get_time()]", "[get_time(), get_time()]"):
        watcher = NameWatcher(TokenTexts(tokenizer, wire), NameTrie(names.paths), names)
        found, _ = follow(watcher, tokenizer(text)["input_ids"])
        assert len(found) == text.count("get_time")


@pytest.mark.parametrize("wire", WITH_ARGUMENTS)
def test_a_name_that_never_ends_is_judged_at_the_limit(wire: str) -> None:
    """After so many tokens the name is reported as it stands, once."""
    case = watch(wire)
    tokens = case.ids(FORMATS[wire].prefix()) + case.characters("abcdefg") * NAME_LIMIT
    found, _ = follow(case.watcher(), tokens)
    assert len(found) == 1
    assert found[0].name.startswith("abcdefg")
    assert not found[0].canonical


@pytest.mark.parametrize("wire", WITH_ARGUMENTS)
@pytest.mark.parametrize("split", SPLITS)
def test_a_primed_prefix_goes_on_as_if_written(wire: str, split: str) -> None:
    """Tokens of the turn that stand in the prompt lead to the same decision token."""
    case = watches(wire, split)
    tokens = case.ids(call_text(wire, "search"))
    at = len(case.names.prefix_ids)
    watcher = case.watcher()
    assert not watcher.prime(tokens[:at])
    assert watcher.at_decision
    found, _ = follow(watcher, tokens[at:])
    assert [(w.name, w.canonical, w.calibrated_token) for w in found] == [("search", True, True)]


def test_a_name_complete_in_the_prompt_is_reported() -> None:
    """Priming past a name gives it back, so that it can be judged before anything is written."""
    case = watch("hermes")
    found = case.watcher().prime(case.ids('<tool_call>\n{"name": "search", "argu'))
    assert [(w.name, w.calibrated_token) for w in found] == [("search", False)]


def test_part_of_a_name_in_the_prompt_is_not_canonical() -> None:
    """Where the reading was missed the name is known all the same."""
    case = watch("hermes")
    watcher = case.watcher()
    assert not watcher.prime(case.ids('<tool_call>\n{"name": "sea'))
    assert not watcher.at_decision
    found, _ = follow(watcher, case.characters('rch", "arguments": {}}'))
    assert [(w.name, w.canonical, w.calibrated_token) for w in found] == [("search", False, False)]


def test_a_skipped_name_is_not_reported_again() -> None:
    """After a forced name the watcher waits for the next call."""
    case = watch("hermes")
    first, second = call_text("hermes", "search"), call_text("hermes", "get_time")
    tokens = case.ids(f"{first}\n{second}")
    watcher = case.watcher()
    cut = len(case.names.prefix_ids) + len(case.names.paths["search"])
    watcher.prime(tokens[:cut])
    watcher.skip_name()
    found, _ = follow(watcher, tokens[cut:])
    assert [written.name for written in found] == ["get_time"]


def test_a_bare_name_ends_with_the_turn() -> None:
    """An end token the format has never heard of completes a name that is the whole turn."""
    case = watch("name_only")
    watcher = case.watcher()
    follow(watcher, case.characters("get_time"))
    watcher.feed(case.ids("[ARGS]")[0])
    assert [written.name for written in watcher.end()] == ["get_time"]


def test_padding_at_the_end_is_dropped() -> None:
    """A run of padding goes, tokens before it stay."""
    case = watch("hermes")
    watcher = case.watcher()
    follow(watcher, [*case.ids("x y"), 0, 0])
    watcher.drop_last(0)
    assert watcher.text == "x y"


PIECES = [
    "<tool_call>",
    '\n{"name": "',
    "search",
    'Web", "arguments": {}}',
    "\n</tool_call>",
    "<think>",
    "</think>",
    '"',
    "[",
    "get_time(",
    ")]",
    ", ",
    "{",
    "}",
    '{"name": "get", "parameters": {}}',
    "[TOOL_CALLS]",
    "[ARGS]{}",
    "<function=get>\n</function>",
    "\n",
    "x",
]


@pytest.mark.parametrize("wire", WITH_ARGUMENTS)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=10), split=st.sampled_from(list(SPLITS)))
def test_every_call_that_parses_was_met(wire: str, pieces: list[str], split: str) -> None:
    """For any text and tokenizer, no call reaches the parser without its name being reported."""
    tokenizer = tokenizer_of(split)
    case = watch(wire)
    watcher = NameWatcher(TokenTexts(tokenizer, FORMATS[wire]), case.trie, case.names)
    found, _ = follow(watcher, tokenizer("".join(pieces))["input_ids"])
    turn, _fault = FORMATS[wire].parse_written(watcher.text)
    met = {(written.name, written.start) for written in found}
    assert {(call.name, call.start) for call in turn.calls} <= met
