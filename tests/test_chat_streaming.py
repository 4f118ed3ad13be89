"""Streaming: text in pieces, each call whole and judged, and no way for a blocked one to return."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk
from scripted_chat import call_text, chat_over, guard_of, says

from toolguard.adapters.chat.reply import NOT_CALLED
from toolguard.adapters.chat.stop_text import StopText
from toolguard.adapters.chat.turn_threads import astream_turn, run_turn, stream_turn
from toolguard.adapters.loading import LoadedModel
from toolguard.guard.errors import ConfigError
from toolguard.guard.tools import Menu

ASK = "What is the weather in Rome today?"
TALK = "The quick brown fox jumps over the lazy dog, and then it rests for a while."
CALLS = "\n".join([call_text("get_weather", city="Rome"), call_text("get_time", city="Rome")])

Bound = Callable[..., Any]


@pytest.fixture(scope="module")
def bound(tiny_loaded: LoadedModel, tiny_menu: Menu) -> Bound:
    """Give a function from a text to a chat model that writes it, with the tiny menu bound."""

    def make(text: str, **policy: Any) -> Any:
        guard = guard_of(tiny_loaded, tiny_menu, **policy)
        return chat_over(tiny_loaded, guard, says(text)).bind_tools(tiny_menu.schemas())

    return make


def added(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    return reduce(lambda left, right: left + right, chunks)


async def chunks_of(model: Any, way: str, **options: Any) -> list[AIMessageChunk]:
    if way == "stream":
        return list(model.stream(ASK, **options))
    return [chunk async for chunk in model.astream(ASK, **options)]


both_ways = pytest.mark.parametrize("way", ["stream", "astream"])


@both_ways
async def test_text_comes_in_pieces_and_the_last_chunk_says_so(bound: Bound, way: str) -> None:
    """Pieces add up to the text; usage and metadata stand on the last chunk alone."""
    chunks = await chunks_of(bound(TALK), way)
    assert len(chunks) > 5
    assert "".join(str(chunk.content) for chunk in chunks) == TALK
    assert [chunk.chunk_position for chunk in chunks if chunk.chunk_position] == ["last"]
    assert chunks[-1].chunk_position == "last"
    assert [chunk for chunk in chunks if chunk.usage_metadata] == chunks[-1:]
    whole = bound(TALK).invoke(ASK)
    assert added(chunks).usage_metadata == whole.usage_metadata
    assert added(chunks).response_metadata["finish_reason"] == "stop"


@both_ways
async def test_each_call_is_one_whole_chunk_after_the_text(bound: Bound, way: str) -> None:
    """No fragment of arguments is ever sent; records come with the last chunk."""
    chunks = await chunks_of(bound(f"Let me see.\n{CALLS}"), way)
    with_calls = [chunk for chunk in chunks if chunk.tool_call_chunks]
    assert [chunk.tool_calls[0]["name"] for chunk in with_calls] == ["get_weather", "get_time"]
    assert all(chunk.tool_calls[0]["args"] == {"city": "Rome"} for chunk in with_calls)
    full = added(chunks)
    assert full.content == "Let me see."
    assert [call["name"] for call in full.tool_calls] == ["get_weather", "get_time"]
    assert set(full.response_metadata["toolguard"]) == {call["id"] for call in full.tool_calls}


@both_ways
@pytest.mark.parametrize("doubtful", ["veto", "confirm", "clarify"])
async def test_a_blocked_call_stays_blocked_when_chunks_are_added(
    bound: Bound, way: str, doubtful: str
) -> None:
    """LangChain turns missing arguments of a chunk into a valid call; ours cannot become one."""
    model = bound(CALLS, threshold=None, tools={"get_weather": {"doubtful": doubtful}})
    chunks = await chunks_of(model, way)
    full = added([*chunks, AIMessageChunk(content="")])
    assert full.tool_calls == []
    (call,) = full.invalid_tool_calls
    assert (call["name"], call["args"]) == ("get_weather", NOT_CALLED)
    record = full.response_metadata["toolguard"][call["id"]]
    assert record["action"] == doubtful


@both_ways
@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "search", "arguments": {"query": "del',
        '<tool_call>\n{"name": "search", "arguments": {',
        '<tool_call>\n{"name": "search", "arguments": {}',
        "<tool_call>\nnonsense",
    ],
)
async def test_a_call_that_breaks_off_is_never_repaired(bound: Bound, way: str, text: str) -> None:
    """Half a call stays invalid, where adding JSON fragments would have completed it."""
    full = added(await chunks_of(bound(text), way))
    assert full.tool_calls == []
    assert len(full.invalid_tool_calls) == 1


def test_streamed_events_tell_calls_apart(bound: Bound) -> None:
    """The event stream of LangChain gives two calls, one of them invalid, and not a mixture."""
    model = bound(f"Wait.\n{CALLS}", tools={"get_time": {"rule": "deny"}})
    stream = model.stream_events(ASK, version="v3")
    list(stream)
    message = stream.output
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [
        ("get_weather", {"city": "Rome"})
    ]
    assert [call["name"] for call in message.invalid_tool_calls] == ["get_time"]
    assert message.text == "Wait."


def test_content_blocks_hold_text_and_calls(bound: Bound, tiny_menu: Menu) -> None:
    """With LangChain's content blocks the text and each call are blocks of their own."""
    model = bound(f"Wait.\n{CALLS}").bound.model_copy(update={"output_version": "v1"})
    full = added(list(model.bind_tools(tiny_menu.schemas()).stream(ASK)))
    assert [block["type"] for block in full.content_blocks] == ["text", "tool_call", "tool_call"]
    assert full.text == "Wait."
    assert [call["name"] for call in full.tool_calls] == ["get_weather", "get_time"]


@both_ways
async def test_no_piece_of_a_stop_sequence_is_sent(bound: Bound, way: str) -> None:
    """An end that may become a stop sequence waits until it is known not to."""
    chunks = await chunks_of(bound(TALK), way, stop=["brown fox jumps"])
    assert "".join(str(chunk.content) for chunk in chunks) == "The quick "


@both_ways
async def test_an_error_reaches_who_streams(bound: Bound, way: str) -> None:
    """What goes wrong in the turn's thread is raised where the chunks are read."""
    with pytest.raises(ConfigError, match="num_beams"):
        await chunks_of(bound(TALK), way, num_beams=3)


def test_leaving_a_stream_ends_the_turn(bound: Bound) -> None:
    """Nobody reads any more, so no more tokens are generated."""
    model = bound(TALK)
    script = model.bound.generate_kwargs["logits_processor"][0]
    stream = model.stream(ASK)
    next(stream)
    stream.close()
    written = script.calls
    assert written < 40
    assert not [t for t in threading.enumerate() if t.name.startswith("toolguard-turn")]
    assert script.calls == written


def wait_for_tokens(script: Any) -> None:
    while script.calls < 3:
        time.sleep(0.001)


async def test_cancelling_a_task_ends_the_turn(bound: Bound) -> None:
    """A cancelled ainvoke leaves no thread that writes on."""
    model = bound(TALK * 4)
    script = model.bound.generate_kwargs["logits_processor"][0]
    task = asyncio.create_task(model.ainvoke(ASK))
    await asyncio.to_thread(wait_for_tokens, script)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.3)
    written = script.calls
    await asyncio.sleep(0.1)
    assert script.calls == written < 100


async def test_the_loop_goes_on_while_a_turn_is_written(bound: Bound) -> None:
    """Other tasks run many times during one ainvoke."""
    ticks = 0
    task = asyncio.create_task(bound(TALK).ainvoke(ASK))
    while not task.done():
        ticks += 1
        await asyncio.sleep(0.001)
    assert (await task).content == TALK
    assert ticks > 5


def counted(on_text: Any, left: threading.Event) -> int:
    for index in range(3):
        if on_text:
            on_text(str(index))
    return 3


def failing(on_text: Any, left: threading.Event) -> int:
    if on_text:
        on_text("before")
    raise ConfigError("no")


async def test_a_turns_thread_gives_text_then_result() -> None:
    """Pieces in order, the result last, the same in both worlds."""
    assert list(stream_turn(counted)) == ["0", "1", "2", 3]
    assert [part async for part in astream_turn(counted)] == ["0", "1", "2", 3]
    assert await run_turn(counted) == 3


async def test_a_failing_turn_raises_after_its_text() -> None:
    """Text that came before the failure is not lost, and the failure is not either."""
    seen: list[Any] = []
    with pytest.raises(ConfigError):
        seen.extend(stream_turn(failing))
    parts = astream_turn(failing)
    seen.append(await anext(parts))
    with pytest.raises(ConfigError):
        await anext(parts)
    assert seen == ["before", "before"]
    with pytest.raises(ConfigError):
        await run_turn(failing)


@pytest.mark.parametrize(
    ("stops", "pieces", "sent", "found"),
    [
        (["b"], ["a", "b", "c"], ["a"], True),
        (["abc"], ["xa", "b", "d"], ["x", "abd"], False),
        (["abc"], ["xa", "bc"], ["x"], True),
        (["abc"], ["ab"], ["ab"], False),
        (["aab"], ["a", "a", "a", "b"], ["a"], True),
        ([], ["a", "b"], ["a", "b"], False),
        ([""], ["a"], ["a"], False),
    ],
)
def test_stop_sequences_across_pieces(
    stops: list[str], pieces: list[str], sent: list[str], found: bool
) -> None:
    """A sequence is found wherever pieces are cut, and what was held back comes in the end."""
    got: list[str] = []
    text = StopText(stops, got.append)
    for piece in pieces:
        text.push(piece)
    text.finish()
    assert got == sent
    assert text.found is found
