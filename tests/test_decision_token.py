"""The decision token and the name paths, on tokenizers that split and fuse in different ways."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import (
    APART,
    HERMES,
    PLAIN,
    SPECIAL,
    TEMPLATES,
    byte_level_bpe,
    with_template,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from toolguard.adapters.decision_token import NameTokens, name_tokens
from toolguard.adapters.wire import FORMATS, get_format
from toolguard.guard.errors import ConfigError, UnsupportedModel
from toolguard.guard.tools import Menu, ToolCall

HERMES_FORMAT = get_format("hermes")
NAME_ONLY = get_format("name_only")
CONTEXT = "<|im_start|>user\nHow warm is it?<|im_end|>\n<|im_start|>assistant\n"
NAMES = ["get_weather", "get_time", "search", "searchWeb"]

FUSING_CORPUS = ['"get', '"get', '"s', '"se', "[get", "=get", "_time", "_weather"] * 4


@pytest.fixture(scope="module")
def apart():
    """Signs and letters never share a token."""
    return with_template(HERMES, byte_level_bpe(APART))


@pytest.fixture(scope="module")
def words():
    """Splits as large vocabularies do: a word may take one leading sign."""
    return with_template(HERMES)


@pytest.fixture(scope="module")
def fusing():
    """Nothing is split beforehand, so that a quote and a letter become one token."""
    return with_template(HERMES, byte_level_bpe(None, corpus=FUSING_CORPUS, merges=16))


def tokens(tokenizer, ids):
    return [tokenizer.decode([token]) for token in ids]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_prefix_ends_with_the_quote_and_paths_with_the_closing_one(apart):
    """The decision token is the quote before the name; each path holds the name and its quote."""
    found = name_tokens(apart, HERMES_FORMAT, NAMES, CONTEXT)
    assert apart.decode(found.prefix_ids) == '<tool_call>\n{"name": "'
    assert tokens(apart, found.prefix_ids)[-1].endswith('"')
    for name, path in found.paths.items():
        assert apart.decode(path).startswith(name + '"')
        assert tokens(apart, path)[-1].startswith('"')
    assert list(found.paths) == NAMES


@pytest.mark.parametrize("kind", ["apart", "words", "fusing"])
@pytest.mark.parametrize("wire", FORMATS.values(), ids=lambda wire: wire.name)
def test_prefix_and_path_are_the_tokens_of_the_whole_call(request, kind, wire):
    """Prompt, prefix and path are what the tokenizer gives for the text as a whole."""
    tokenizer = request.getfixturevalue(kind)
    found = name_tokens(tokenizer, wire, NAMES, CONTEXT)
    context_ids = ids_of(tokenizer, CONTEXT)
    for name, path in found.paths.items():
        ids = [*context_ids, *found.prefix_ids, *path]
        after = "<|im_end|>" if wire is NAME_ONLY else ""
        whole = ids_of(tokenizer, CONTEXT + wire.probe_text(name) + after)
        assert whole[: len(ids)] == ids
        spelled = CONTEXT + wire.prefix() + wire.spell(name)
        assert tokenizer.decode(ids[:-1]) in spelled
        assert tokenizer.decode(ids).startswith(spelled)
        assert len(tokenizer.decode(ids)) > len(spelled)


def test_a_fused_quote_moves_the_decision_token_back(fusing):
    """If one name's first letter joins the quote, every path starts at the quote."""
    found = name_tokens(fusing, HERMES_FORMAT, NAMES, CONTEXT)
    assert fusing.decode(found.prefix_ids) == '<tool_call>\n{"name": '
    assert tokens(fusing, found.paths["get_time"])[0] == '"get'
    assert all(fusing.decode(path).startswith('"' + name) for name, path in found.paths.items())
    mixed = name_tokens(fusing, HERMES_FORMAT, ["get_time", "abc"], CONTEXT)
    assert mixed.prefix_ids == found.prefix_ids
    assert tokens(fusing, mixed.paths["abc"])[0] == '"'
    alone = name_tokens(fusing, HERMES_FORMAT, ["abc"], CONTEXT)
    assert fusing.decode(alone.prefix_ids) == '<tool_call>\n{"name": "'


@settings(max_examples=25, deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
def test_without_fusing_the_prefix_does_not_depend_on_the_menu(apart, names):
    """Any menu, unicode included, meets the same decision token, and each name keeps its path."""
    alone = name_tokens(apart, HERMES_FORMAT, ["search"], CONTEXT)
    found = name_tokens(apart, HERMES_FORMAT, names, CONTEXT)
    assert found.prefix_ids == alone.prefix_ids or any(not n[0].isalpha() for n in names)
    for name in names:
        single = name_tokens(apart, HERMES_FORMAT, [name], CONTEXT)
        left = (*found.prefix_ids, *found.paths[name])
        assert left == (*single.prefix_ids, *single.paths[name])


def test_a_long_prompt_gives_the_tokens_of_its_end(words):
    """Only the end of the prompt matters, so a long one costs no more."""
    long = "x y\n" * 20_000 + CONTEXT
    assert name_tokens(words, HERMES_FORMAT, NAMES, long) == name_tokens(
        words, HERMES_FORMAT, NAMES, CONTEXT
    )
    one_line = "word " * 20_000 + CONTEXT.replace("\n", " ").strip() + "<|im_end|>"
    assert name_tokens(words, HERMES_FORMAT, NAMES, one_line).prefix_ids


def test_an_empty_context_is_the_start_of_the_text(words):
    """A model prompted with nothing still has a prefix."""
    found = name_tokens(words, HERMES_FORMAT, NAMES, "")
    assert words.decode(found.prefix_ids) == '<tool_call>\n{"name": "'


def test_name_only_ends_with_the_end_of_the_turn(words):
    """The prompt's last token decides, and what ends a turn in the template ends a name."""
    tokenizer = with_template(PLAIN)
    found = name_tokens(tokenizer, NAME_ONLY, NAMES, CONTEXT)
    assert found.prefix_ids == ()
    assert all(tokens(tokenizer, path)[-1] == "<|im_end|>" for path in found.paths.values())
    bare = name_tokens(with_template(None), NAME_ONLY, NAMES, "Tool:\n")
    assert all(tokens(tokenizer, path)[-1] == "\n" for path in bare.paths.values())


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_every_family_has_a_decision_token_after_its_own_prompt(name):
    """From template to token ids: the rendered prompt and the paths of its menu fit together."""
    wire = FORMATS[name]
    tokenizer = with_template(TEMPLATES[name])
    menu = Menu.of([{"name": tool} for tool in NAMES])
    prompt = wire.render(tokenizer, [{"role": "user", "content": "How warm is it?"}], menu)
    found = name_tokens(tokenizer, wire, menu.names, prompt)
    assert set(found.paths) == set(NAMES)
    text = tokenizer.decode([*found.prefix_ids, *found.paths["searchWeb"]])
    assert text.startswith(wire.prefix() + "searchWeb")


def test_mistral_decides_at_its_special_token(words):
    """The token that announces calls is the decision token, and the next mark ends a name."""
    found = name_tokens(words, get_format("mistral"), NAMES, CONTEXT)
    assert tokens(words, found.prefix_ids) == ["[TOOL_CALLS]"]
    assert tokens(words, found.paths["search"])[-1] == "[ARGS]"


def test_paths_do_not_depend_on_what_follows_the_name(words):
    """A call with arguments meets the same path as one without."""
    for wire in FORMATS.values():
        if wire in (NAME_ONLY, get_format("pythonic")):
            continue
        found = name_tokens(words, wire, ["search"], CONTEXT)
        call = ToolCall(name="search", arguments={"q": [1, "x"]})
        whole = ids_of(words, CONTEXT + wire.call_text(call))
        ids = [*ids_of(words, CONTEXT), *found.prefix_ids, *found.paths["search"]]
        assert whole[: len(ids)] == ids


@pytest.mark.parametrize("name", ["résumé", "天气", "a.b", 'quo"te', "with space", "🙂", "\\"])
def test_names_of_any_characters(apart, words, name):
    """Multi-byte characters and escapes are covered by the path to the last byte."""
    for tokenizer in (apart, words):
        found = name_tokens(tokenizer, HERMES_FORMAT, [name, "other"], CONTEXT)
        text = tokenizer.decode([*found.prefix_ids, *found.paths[name]])
        assert text.startswith(f'{HERMES_FORMAT.prefix()}{HERMES_FORMAT.spell(name)}"')


def test_a_prompt_that_joins_the_call_is_refused(fusing):
    """A prompt whose end changes its tokens when the call follows has no fixed decision token."""
    with pytest.raises(UnsupportedModel, match="joins the end of the prompt"):
        name_tokens(fusing, NAME_ONLY, ["get_time"], 'Answer: "')


def word_level(normalizer=None):
    vocabulary = [*SPECIAL, "[UNK]", '{"', 'name":', '"', "search", '",', "\n", "arguments", "{}}"]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.normalizer = normalizer
    return tokenizer


def test_names_that_share_all_tokens_are_refused():
    """A tokenizer that folds case cannot tell two names apart that differ only in case."""
    tokenizer = byte_level_bpe()
    tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ConfigError, match="do not tell them apart") as caught:
        name_tokens(with_template(HERMES, tokenizer), HERMES_FORMAT, ["Find", "find"], CONTEXT)
    assert set(caught.value.fields["names"]) == {"Find", "find"}


def test_a_name_without_tokens_is_refused():
    """Unknown and special tokens spell nothing, so no probability belongs to such a name."""
    tokenizer = with_template(PLAIN, word_level())
    tokenizer.unk_token = "[UNK]"
    with pytest.raises(ConfigError, match="special or unknown"):
        name_tokens(tokenizer, NAME_ONLY, ["weather"], CONTEXT)
    special = with_template(HERMES)
    special.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    with pytest.raises(ConfigError, match="special or unknown"):
        name_tokens(special, HERMES_FORMAT, ["x<|eot|>y"], CONTEXT)


@pytest.mark.parametrize("names", [[], ["a", "b", "a"]])
def test_a_menu_needs_different_names(words, names):
    """No names and a name twice are mistakes of the menu."""
    with pytest.raises(ConfigError):
        name_tokens(words, HERMES_FORMAT, names, CONTEXT)


def test_a_name_the_format_cannot_carry_is_refused(words):
    """The format's own refusal comes through."""
    with pytest.raises(ConfigError, match="cannot carry"):
        name_tokens(words, get_format("pythonic"), ["a-b"], CONTEXT)


def test_a_tokenizer_without_offsets_is_refused():
    """Slow tokenizers cannot say which characters a token covers."""

    class Slow:
        is_fast = False
        chat_template = None

    with pytest.raises(UnsupportedModel, match="Slow gives no character offsets"):
        name_tokens(Slow(), HERMES_FORMAT, NAMES, CONTEXT)


class CountingTokenizer:
    """A tokenizer that counts how often it is called."""

    def __init__(self, words):
        self.words, self.calls = words, 0

    def __call__(self, *args, **options):
        self.calls += 1
        return self.words(*args, **options)

    def __getattr__(self, name):
        return getattr(self.words, name)


def test_a_menu_of_64_tools_takes_as_many_passes_as_one_of_two(words):
    """All names of a menu go through the tokenizer together, not one call a name."""
    calls = []
    for count in (2, 64):
        counting = CountingTokenizer(words)
        names = [f"get_{i}_weather_of_place" for i in range(count)]
        found = name_tokens(counting, HERMES_FORMAT, names, CONTEXT * 20)
        assert isinstance(found, NameTokens)
        calls.append(counting.calls)
    assert 0 < calls[1] == calls[0]
