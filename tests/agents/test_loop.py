"""The event loop of a session, in its one thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from airflow_agent_provider.agents.loop import SessionLoop
from airflow_agent_provider.agents.watch import Overdue


@pytest.fixture
def loop() -> Iterator[SessionLoop]:
    made = SessionLoop("test")
    yield made
    made.close()


async def thread() -> threading.Thread:
    return threading.current_thread()


async def count(to: int, pause: float = 0.0) -> AsyncIterator[int]:
    for number in range(to):
        await asyncio.sleep(pause)
        yield number


async def fails() -> None:
    raise KeyError("no such thing")


def test_everything_happens_in_the_same_thread(loop: SessionLoop) -> None:
    first, second = (loop.run(thread(), 5, "asking") for _ in range(2))
    assert first is second
    assert first is not threading.current_thread()
    assert first.name == "test"


def test_what_is_raised_is_raised_here(loop: SessionLoop) -> None:
    with pytest.raises(KeyError, match="no such thing"):
        loop.run(fails(), 5, "failing")


def test_a_call_that_takes_too_long_is_cancelled(loop: SessionLoop) -> None:
    cancelled = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(Overdue, match=r"waiting took longer than 0\.1 seconds"):
        loop.run(endless(), 0.1, "waiting")
    assert cancelled.wait(5)
    assert loop.run(thread(), 5, "asking").is_alive()


def test_a_timeout_of_the_call_itself_is_no_overdue(loop: SessionLoop) -> None:
    async def times_out() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        loop.run(times_out(), 5, "calling")


def test_events_come_in_their_order(loop: SessionLoop) -> None:
    assert list(loop.iterate(count(500))) == list(range(500))


def test_what_an_iterable_raises_comes_after_its_events(loop: SessionLoop) -> None:
    async def breaks() -> AsyncIterator[int]:
        yield 1
        raise KeyError("broken")

    events = loop.iterate(breaks())
    assert next(events) == 1
    with pytest.raises(KeyError, match="broken"):
        next(events)


def test_an_iteration_that_nobody_follows_any_more_ends(loop: SessionLoop) -> None:
    ended = threading.Event()

    async def watched() -> AsyncIterator[int]:
        try:
            async for number in count(10**6):
                yield number
        finally:
            ended.set()

    events = loop.iterate(watched())
    assert next(events) == 0
    events.close()  # type: ignore[attr-defined]
    assert ended.wait(10)


def test_closing_ends_whoever_waits(loop: SessionLoop) -> None:
    found: list[BaseException] = []

    def follow() -> None:
        try:
            list(loop.iterate(count(2, pause=60)))
        except ConnectionError as error:
            found.append(error)

    follower = threading.Thread(target=follow)
    follower.start()
    time.sleep(0.2)
    loop.close()
    follower.join(10)
    assert not follower.is_alive()
    assert len(found) == 1


def test_after_its_end_nothing_runs(loop: SessionLoop) -> None:
    loop.close()
    loop.close()
    with pytest.raises(ConnectionError, match="was closed"):
        loop.run(thread(), 5, "asking")


def test_a_loop_that_is_closing_takes_no_more_calls(loop: SessionLoop) -> None:
    cancelled = threading.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.sleep(0.5)

    def call() -> None:
        # Whether it is told of its own end or of the loop's, depends on which comes first.
        with contextlib.suppress(ConnectionError, concurrent.futures.CancelledError):
            loop.run(slow_to_end(), 60, "a long call")

    caller, closer = threading.Thread(target=call), threading.Thread(target=loop.close)
    caller.start()
    loop.run(asyncio.sleep(0.1), 5, "letting it begin")
    closer.start()
    assert cancelled.wait(10)
    with pytest.raises(ConnectionError):
        loop.run(asyncio.sleep(60), 3, "a late call")
    for thread in (caller, closer):
        thread.join(10)
        assert not thread.is_alive()
