"""An event loop for one agent's session, in a thread that lives as long as the session.

The box around a local agent dies with the thread that started it (``bwrap --die-with-parent``), so
everything of a vendor's asynchronous SDK happens in this one thread; the step, and the threads that
watch it, only wait for results, never longer than they may.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Iterator
from typing import Any, TypeVar

from airflow_agent_provider.agents.watch import Overdue

Result = TypeVar("Result")
Event = TypeVar("Event")

#: Seconds that a cancelled call, or the loop's own end, may take.
_END_SECONDS = 5.0
#: Rounds of a loop that was told to stop, for what is already on its way.
_LAST_ROUNDS = 10
#: Events that the loop reads ahead of the step.
_QUEUE_LENGTH = 100


class _Ended:
    """Marks the end of a stream of events."""


class SessionLoop:
    """An event loop in a thread of its own.

    :param name: the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Result], seconds: float, what: str) -> Result:
        """Run ``coroutine`` in the loop's thread; return what it returns, raise what it raises.

        :param coroutine: what to run.
        :param seconds: how long it may take; it is cancelled then.
        :param what: the call's name in the error.
        :raises Overdue: if it takes longer.
        """
        future = self._submit(coroutine)
        try:
            return future.result(timeout=seconds)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise
            future.cancel()
            raise Overdue(f"{what} took longer than {seconds:g} seconds") from None

    def iterate(self, events: AsyncIterable[Event]) -> Iterator[Event]:
        """Yield what ``events`` yields, in the calling thread, without a bound on the wait.

        To be given to :func:`~airflow_agent_provider.agents.watch.watched`, which has the bounds.
        Closing the loop ends it with ``ConnectionError``.

        :param events: an asynchronous iterable of the loop's own objects.
        """
        queue: asyncio.Queue[Any] = asyncio.Queue(_QUEUE_LENGTH)
        reader = self._submit(_fill(queue, events))
        try:
            while True:
                try:
                    item = self._submit(queue.get()).result()
                except concurrent.futures.CancelledError:
                    raise ConnectionError("the session was closed") from None
                if item is _Ended:
                    reader.result()
                    return
                yield item
        finally:
            reader.cancel()

    def close(self) -> None:
        """Cancel what still runs and end the thread, within seconds; harmless a second time."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_SECONDS)

    def _submit(self, coroutine: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        # A loop that has stopped would never run it, and its caller would wait for ever.
        if self._closing:
            coroutine.close()
            raise ConnectionError("the session was closed")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            # What was submitted just before the end becomes a task now, and is cancelled with the
            # others; and the pipes of programs that have ended close.
            self._loop.run_until_complete(_rounds(_LAST_ROUNDS))
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            if left:
                self._loop.run_until_complete(asyncio.wait(left, timeout=_END_SECONDS))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()


async def _rounds(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _fill(queue: asyncio.Queue[Any], events: AsyncIterable[Any]) -> None:
    iterator = aiter(events)
    listened_to = True
    try:
        async for event in iterator:
            await queue.put(event)
    except asyncio.CancelledError:
        # Nobody reads on, so the end cannot be told either: the queue may be full.
        listened_to = False
        raise
    finally:
        if listened_to:
            await queue.put(_Ended)
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()
