"""Waiting for an agent's program, never longer than the task allows.

Vendors' SDKs wait without bound, so a thread reads their events and the step waits for that
thread: until the deadline, and never longer than the stall time without a sign of life.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from airflow_agent_provider.agents.contract import Limits
from airflow_agent_provider.agents.failures import AgentFailure, Stalled, TimedOut

Event = TypeVar("Event")
Result = TypeVar("Result")

#: Events that may wait for the step; beyond, the agent's program waits.
_QUEUE_LENGTH = 1000
#: Seconds between two looks of a full reader at whether anybody still listens.
_ABANDON_POLL = 0.5
#: Seconds between two looks at trouble that no event tells of.
_STANDING_POLL = 1.0


class Overdue(Exception):
    """A call took longer than it may."""


@dataclass(frozen=True)
class Standing:
    """Trouble that no event tells of: requests to the model that failed, one after the other.

    :param failure: what the latest of them was.
    :param since: the monotonic clock's seconds of the first one, after which none succeeded.
    :param latest: the monotonic clock's seconds of the latest one.
    """

    failure: AgentFailure
    since: float
    latest: float


def within(seconds: float, call: Callable[[], Result], what: str) -> Result:
    """Return what ``call`` returns, or raise what it raises, if it does so in time.

    A call that is overdue goes on in its thread; whoever called must end what it waits for.

    :param seconds: how long the call may take.
    :param call: what to call, in a thread of its own.
    :param what: the call's name in the error.
    :raises Overdue: if the call takes longer.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f"agent {what}", daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except TimeoutError:
        if future.done():
            raise
        raise Overdue(f"{what} took longer than {seconds:g} seconds") from None


def watched(
    events: Iterable[Event],
    limits: Limits,
    interrupt: Callable[[], None],
    *,
    trouble: Callable[[Event], AgentFailure | None] = lambda _: None,
    standing: Callable[[], Standing | None] | None = None,
    patience: float = 30.0,
    grace: float = 5.0,
) -> Iterator[Event]:
    """Yield ``events`` as they come, and end the agent's turn when it takes too long.

    Only the time that the step waits counts as silence, not the time that it spends on an event.

    :param events: the agent's events; read in a thread of its own, which ends with them.
    :param limits: the task's deadline and stall time.
    :param interrupt: makes the agent end its turn, so that ``events`` end; called from a thread of
        its own, at most once, and also when the caller stops listening early.
    :param trouble: returns the failure that an event announces where the vendor tries again by
        itself. Such an event is no sign of life.
    :param standing: returns the trouble that an agent hides behind retries of its own, as it is
        now. It outlasts the signs of life that such retries give; where it came after the last
        one, it is raised in place of a stall.
    :param patience: seconds of nothing but trouble after which its latest failure is raised.
    :param grace: seconds that the agent has to end its turn once interrupted; its events of that
        time are still yielded, the usage among them.
    :raises TimedOut: after the deadline.
    :raises Stalled: after the stall time without an event.
    :raises AgentFailure: the failure of ``trouble`` or ``standing``; any exception of ``events``
        comes unchanged.
    """
    reader = _Reader(events)
    patrol = _Patrol(limits, patience, standing or (lambda: None))
    longest = math.inf if standing is None else _STANDING_POLL
    at_work = True
    try:
        while (failure := patrol.verdict()) is None:
            item = reader.get(min(patrol.wait(), longest))
            if isinstance(item, _End):
                at_work = False
                if item.error is not None:
                    raise item.error
                return
            if item is not None:
                patrol.note(trouble(item.event))
                yield item.event
                patrol.resume()
        at_work = False
        _call_apart(interrupt)
        yield from _last_words(reader, grace)
        raise failure
    finally:
        reader.abandon()
        if at_work:
            _call_apart(interrupt)


def _call_apart(call: Callable[[], None]) -> None:
    # A vendor's interrupt waits for an answer, which may never come.
    threading.Thread(target=_quietly, args=(call,), name="agent interrupt", daemon=True).start()


def _quietly(call: Callable[[], None]) -> None:
    # The program may be gone by now, and the failure that is under way says more.
    with contextlib.suppress(Exception):
        call()


def _last_words(reader: _Reader[Event], grace: float) -> Iterator[Event]:
    end = time.monotonic() + grace
    while (left := end - time.monotonic()) > 0:
        item = reader.get(left)
        if not isinstance(item, _Next):
            return
        yield item.event


@dataclass(frozen=True)
class _Next(Generic[Event]):
    event: Event


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None


class _Reader(Generic[Event]):
    """Reads events in a thread, and lets the agent wait while the step is behind."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._items: queue.Queue[_Next[Event] | _End] = queue.Queue(_QUEUE_LENGTH)
        self._abandoned = threading.Event()
        self._events = events
        threading.Thread(target=self._read, name="agent events", daemon=True).start()

    def get(self, seconds: float) -> _Next[Event] | _End | None:
        """Return the next item, None if there is none in time."""
        try:
            return self._items.get(timeout=seconds) if seconds > 0 else self._items.get_nowait()
        except queue.Empty:
            return None

    def abandon(self) -> None:
        """Let the thread end: nobody listens any more."""
        self._abandoned.set()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for event in self._events:
                if not self._put(_Next(event)):
                    return
        except BaseException as raised:
            error = raised
        self._put(_End(error))

    def _put(self, item: _Next[Event] | _End) -> bool:
        while not self._abandoned.is_set():
            try:
                self._items.put(item, timeout=_ABANDON_POLL)
                return True
            except queue.Full:
                continue
        return False


class _Patrol:
    """Knows how long the step may still wait, and why no longer."""

    def __init__(
        self,
        limits: Limits,
        patience: float,
        standing: Callable[[], Standing | None] = lambda: None,
    ) -> None:
        self._limits = limits
        self._patience = patience
        self._standing = standing
        self._trouble: AgentFailure | None = None
        self._troubled_since = math.inf
        self._silent = 0.0
        self._alive = self._waiting_since = time.monotonic()

    def wait(self) -> float:
        """Return for how many seconds nothing can be wrong."""
        now = time.monotonic()
        silence_left = self._limits.stall - self._silence(now)
        patience_left = self._troubled_since + self._patience - now
        return max(0.0, min(self._limits.remaining, silence_left, patience_left))

    def verdict(self) -> AgentFailure | None:
        """Return what is wrong now, if anything is."""
        now = time.monotonic()
        if self._limits.remaining <= 0:
            return TimedOut(f"the attempt's timeout of {self._limits.timeout:g} s is over")
        if self._trouble is not None and now >= self._troubled_since + self._patience:
            return self._trouble
        standing = self._standing()
        if standing is not None and standing.latest - standing.since >= self._patience:
            return standing.failure
        if self._silence(now) >= self._limits.stall:
            # A request may fail while the agent is at work on something else; that is no reason.
            if standing is not None and standing.latest > self._alive:
                return standing.failure
            return Stalled(f"the agent gave no sign of life for {self._limits.stall:g} s")
        return None

    def note(self, trouble: AgentFailure | None) -> None:
        """Take an event into account."""
        now = time.monotonic()
        if trouble is None:
            self._silent, self._troubled_since = 0.0, math.inf
            self._alive = now
        else:
            self._silent = self._silence(now)
            self._troubled_since = min(self._troubled_since, now)
        self._trouble = trouble

    def resume(self) -> None:
        """Start to wait again, after the step has dealt with an event."""
        self._waiting_since = time.monotonic()

    def _silence(self, now: float) -> float:
        return self._silent + now - self._waiting_since
