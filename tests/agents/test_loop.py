"""The loop of a session, in its own thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from airflow_agent_provider.agents.loop import SessionLoop
from airflow_agent_provider.agents.watch import Overdue


@pytest.fixture
def loop() -> Any:
    made = SessionLoop("a session")
    yield made
    made.close()


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


async def thread_name() -> str:
    return threading.current_thread().name


def test_everything_runs_in_its_one_thread(loop: SessionLoop) -> None:
    assert {loop.run(thread_name(), 5, "asking") for _ in range(3)} == {"a session"}


def test_a_call_that_takes_too_long_is_cancelled(loop: SessionLoop) -> None:
    ended: list[str] = []

    async def late() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(Overdue, match=r"waiting took longer than 0\.1 seconds"):
        loop.run(late(), 0.1, "waiting")
    loop.run(asyncio.sleep(0), 5, "a round")
    assert ended == ["cancelled"]


def test_events_come_in_the_callers_thread(loop: SessionLoop) -> None:
    assert list(loop.iterate(numbers(250))) == list(range(250))


def test_what_the_events_raise_comes_after_them(loop: SessionLoop) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("broken")

    events = loop.iterate(broken())
    assert next(events) == 1
    with pytest.raises(ValueError, match="broken"):
        next(events)


def test_closing_ends_who_waits_for_events(loop: SessionLoop) -> None:
    async def silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(60)

    events = loop.iterate(silent())
    assert next(events) == 1
    closer = threading.Timer(0.1, loop.close)
    closer.start()
    with pytest.raises(ConnectionError):
        next(events)
    closer.join()
    with pytest.raises(ConnectionError):
        loop.run(asyncio.sleep(0), 5, "a call after the end")
    loop.close()


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
