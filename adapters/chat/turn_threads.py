"""A turn in a thread of its own: its text piece by piece, or its result without blocking a loop.

A turn nobody waits for any more, because the iterator was closed or the task cancelled, ends at its
next token.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")
OnText = Callable[[str], None]
RunTurn = Callable[[OnText | None, threading.Event], Result]
"""Runs a turn; given where its text goes and an event that tells it to end."""


def stream_turn(run: RunTurn[Result]) -> Generator[str | Result]:
    """Yield the turn's text in pieces and then its result; raise what the turn raises."""
    pieces: SimpleQueue[str | None] = SimpleQueue()
    left = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="toolguard-turn") as pool:
        work = pool.submit(contextvars.copy_context().run, run, pieces.put, left)
        work.add_done_callback(lambda _: pieces.put(None))
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            yield work.result()
        finally:
            left.set()


async def run_turn(run: RunTurn[Result]) -> Result:
    """Return the turn's result from a worker thread."""
    left = threading.Event()
    try:
        return await asyncio.to_thread(run, None, left)
    finally:
        left.set()


async def astream_turn(run: RunTurn[Result]) -> AsyncGenerator[str | Result]:
    """Yield what `stream_turn` does; the turn is run by the loop's worker threads.

    These are few, so that any number of turns at once does not mean as many forwards at once.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    left = threading.Event()

    def send(piece: str) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    work = asyncio.create_task(asyncio.to_thread(run, send, left))
    work.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        yield await work
    finally:
        left.set()
        work.cancel()  # one that still waits for a thread never begins
