"""One poller for all hosted runs of a vendor's key that one triggerer waits for.

The triggers only say which run they wait for and take what is told of it; every request to the
vendor is the poller's, so that all of them together stay within what the key may ask for.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from weakref import WeakKeyDictionary

from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    Interrupted,
    RateLimited,
    Unavailable,
)
from airflow_agent_provider.hooks.agent import (
    AgentPage,
    HostedAgentHook,
    HostedLimits,
    HostedRun,
    ListedAgent,
)
from airflow_agent_provider.triggers.rounds import MAX_BACKOFF, Key, Page, Rounds
from airflow_agent_provider.triggers.schedule import Bucket, Schedule, Urgency

log = logging.getLogger(__name__)

#: The share of the rate that the rounds take. The rest is for what cannot wait, and for the
#: workers, which start runs and fetch results with the same key.
ROUND_SHARE = 2 / 3
#: Seconds until an answer must be complete, whatever the hook's own timeouts are.
REQUEST_TIMEOUT = 60.0
#: Seconds for which the end of a run is tried.
CANCEL_PATIENCE = 600.0
#: Requests under way at once, at most: a slow vendor must not collect them, and what is less urgent
#: leaves room for the rest. A sign of life takes seconds even where the vendor is quick.
MAX_IN_FLIGHT = 16
_ROOM = ((8, Urgency.SIGN), (12, Urgency.ROUND), (MAX_IN_FLIGHT, Urgency.CANCEL))
#: Seconds for which nothing is sent where the vendor asks for it, at most.
MAX_HOLD = 3600.0
#: Seconds before the first look, at most: triggers that start together are in the same list.
FIRST_WAIT = 5.0
#: Seconds that the last trigger waits for the poller to close.
CLOSE_TIMEOUT = 10.0


@dataclass(frozen=True)
class Sign:
    """A sign of life that was asked for.

    :param mark: what the hook returned.
    """

    mark: str


#: What a trigger is told.
News = HostedRun | ListedAgent | Sign | AgentFailure


class _Kind(StrEnum):
    ROUND = "round"
    LOOK = "look"
    SIGN = "sign of life"
    CANCEL = "cancel"


@dataclass(frozen=True)
class _Request:
    """A request; two of the same kind about the same run are one."""

    kind: _Kind
    about: Key | Page
    since: str = field(default="", compare=False)


@dataclass
class _Run:
    """A run that is waited for, and what is known of it.

    :param tickets: of those who wait.
    :param listed: its agent's last entry in the list.
    :param looked_at: the entry of the time when the run itself was last looked at.
    :param failures: looks in a row that got no answer.
    """

    tickets: list[Ticket] = field(default_factory=list)
    listed: ListedAgent | None = None
    looked_at: ListedAgent | None = None
    failures: int = 0


@dataclass
class _Cancel:
    """A run that is to be ended.

    :param done: whether it was still under way.
    :param patience: gives it up in the end.
    :param tries: requests that got no answer.
    """

    done: asyncio.Future[bool]
    patience: asyncio.TimerHandle
    tries: int = 0


class Ticket:
    """A trigger's place at the poller.

    :param poller: the poller.
    :param key: the run.
    :param poll: seconds between two looks, if the rate allows.
    """

    def __init__(self, poller: Poller, key: Key, poll: float) -> None:
        self._poller = poller
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self.key = key
        self.poll = poll

    async def news(self, seconds: float) -> News | None:
        """Return the next thing that is told of the run, None if ``seconds`` pass before."""
        try:
            async with asyncio.timeout(seconds):
                return await self._news.get()
        except TimeoutError:
            return None

    def look(self) -> None:
        """Have the run looked at out of its turn."""
        self._poller.look(self.key)

    def ask(self, since: str) -> None:
        """Have the run asked for a sign of life.

        :param since: the mark that was heard last.
        """
        self._poller.ask(self.key, since)

    async def cancel(self) -> bool:
        """End the run at the vendor; return whether it was still under way.

        :raises AgentFailure: if the vendor refuses, or does not answer for a long time.
        """
        return await self._poller.cancel(self.key)

    def tell(self, news: News) -> None:
        """Put ``news`` before the trigger."""
        self._news.put_nowait(news)


class Poller:
    """Looks at all runs of one key in one event loop; :func:`shared_poller` returns it.

    It is alive while there is a ticket, or a run to end: then its task ends by itself, with all of
    its requests and the hook's client. Whatever ends it tells every trigger that still waits.

    :param hook: sends the requests; the poller closes it.
    :param limits: what the key may ask for.
    :param bucket: counts its requests, beyond the life of this poller.
    """

    def __init__(self, hook: HostedAgentHook, limits: HostedLimits, bucket: Bucket) -> None:
        self.alive = True
        self._hook = hook
        self._bucket = bucket
        self._schedule: Schedule[_Request] = Schedule(bucket)
        first = random.uniform(0.0, min(limits.poll_interval, FIRST_WAIT))
        pace = 1.0 / (bucket.rate * ROUND_SHARE)
        self._rounds = Rounds(pace, time.monotonic() + first)
        self._runs: dict[Key, _Run] = {}
        self._cancels: dict[Key, _Cancel] = {}
        self._flying: dict[_Request, asyncio.Task[None]] = {}
        self._round: _Request | None = None
        self._limited = 0
        self._woken = asyncio.Event()
        # Not in the context of the trigger that happens to be the first: Airflow would write the
        # poller's log into that trigger's.
        self._task = asyncio.create_task(
            self._run(), name="hosted runs' poller", context=contextvars.Context()
        )

    @asynccontextmanager
    async def watch(self, key: Key, poll: float) -> AsyncIterator[Ticket]:
        """Wait for a run with a ticket.

        :param key: the run.
        :param poll: seconds between two looks, if the rate allows.
        """
        ticket = Ticket(self, key, poll)
        run = self._runs.setdefault(key, _Run())
        run.tickets.append(ticket)
        self._rounds.add(key)
        self._set_poll()
        try:
            yield ticket
        finally:
            run.tickets.remove(ticket)
            if not run.tickets:
                self._forget(key)
            self._set_poll()
            if not self._runs and not self._cancels:
                await asyncio.wait({self._task}, timeout=CLOSE_TIMEOUT)

    def look(self, key: Key) -> None:
        """Have a run looked at out of its turn."""
        self._want(_Request(_Kind.LOOK, key), Urgency.CONFIRM)

    def ask(self, key: Key, since: str) -> None:
        """Have a run asked for a sign of life."""
        self._want(_Request(_Kind.SIGN, key, since), Urgency.SIGN)

    async def cancel(self, key: Key) -> bool:
        """End a run at the vendor, whether or not somebody waits for it.

        The poller goes on trying where the caller does not wait for it: Airflow gives a trigger
        only some seconds to end its run, and others may be before it.

        :raises AgentFailure: if the vendor refuses, or does not answer for a long time.
        """
        if not self.alive:
            raise Interrupted(f"the poller was ended before it could end the run {key.run_id}")
        found = self._cancels.get(key)
        if found is None:
            loop = asyncio.get_running_loop()
            patience = loop.call_later(CANCEL_PATIENCE, self._give_up, key)
            found = self._cancels[key] = _Cancel(loop.create_future(), patience)
            self._want(_Request(_Kind.CANCEL, key), Urgency.CANCEL)
        return await asyncio.shield(found.done)

    async def _run(self) -> None:
        end: AgentFailure = Interrupted("the poller of the hosted runs was ended; a retry attaches")
        try:
            while self._runs or self._cancels:
                await self._step()
        except Exception as error:
            log.exception("the poller of the hosted runs failed")
            raw = f"{type(error).__name__}: {error}"
            end = AgentFailed("the poller of the hosted runs failed; a retry attaches", raw=raw)
        finally:
            self.alive = False
            self._tell_all(end)
            for key in list(self._cancels):
                self._settle(key, end)
            await self._close()

    async def _step(self) -> None:
        """Send the next request, or wait until there may be one."""
        now, flying = time.monotonic(), len(self._flying)
        self._plan()
        least = next((urgency for room, urgency in _ROOM if flying < room), None)
        wait = None
        if least is not None:
            request = self._schedule.next(now, least)
            if request is not None:
                self._send(request, now)
                return
            wait = self._schedule.wait(now, least)
        self._woken.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._woken.wait()

    def _plan(self) -> None:
        """Have the next item of the rounds wanted, and no other one."""
        if self._round in self._flying:
            return
        item = self._rounds.next()
        request = _Request(_Kind.ROUND, item[0]) if item else None
        if self._round is not None and self._round != request:
            self._schedule.drop(self._round)
        if item and request:
            self._schedule.want(request, Urgency.ROUND, item[1])
        self._round = request

    def _want(self, request: _Request, urgency: Urgency, not_before: float = -math.inf) -> None:
        self._schedule.want(request, urgency, not_before)
        self._woken.set()

    def _send(self, request: _Request, now: float) -> None:
        if request.kind is _Kind.ROUND:
            self._rounds.sent(request.about, now)
        task = asyncio.create_task(self._perform(request), name=f"hosted runs' {request.kind}")
        self._flying[request] = task
        task.add_done_callback(lambda _: self._landed(request))

    def _landed(self, request: _Request) -> None:
        self._flying.pop(request, None)
        self._woken.set()

    async def _perform(self, request: _Request) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await self._ask_vendor(request)
        except AgentFailure as failure:
            self._failed(request, failure)
        except TimeoutError:
            late = f"the vendor's answer was not complete within {REQUEST_TIMEOUT:.0f} s"
            self._failed(request, Unavailable(late))
        except Exception as error:
            log.exception("a request for the hosted runs failed: %s", request)
            raw = f"{type(error).__name__}: {error}"
            self._failed(request, AgentFailed(f"the {request.kind} could not be read", raw=raw))
        else:
            self._limited = 0

    async def _ask_vendor(self, request: _Request) -> None:
        hook, about = self._hook, request.about
        if isinstance(about, Page):
            self._read(await hook.alist(about.cursor))
            return
        if request.kind is _Kind.SIGN:
            mark = await hook.asign_of_life(about.agent_id, about.run_id, request.since)
            self._tell(about, Sign(mark))
        elif request.kind is _Kind.CANCEL:
            self._settle(about, await hook.acancel(about.agent_id, about.run_id))
        else:
            run = self._runs.get(about, _Run())
            listed = run.listed
            seen = await hook.alook(about.agent_id, about.run_id)
            run.looked_at, run.failures = listed, 0
            self._rounds.saw(about)
            self._tell(about, seen)

    def _read(self, page: AgentPage | None) -> None:
        if page is None:
            self._rounds.no_list()
            return
        self._rounds.listed(page.agents, page.cursor)
        for key, run in self._runs.items():
            if listed := page.agents.get(key.agent_id):
                self._spot(key, run, listed)

    def _spot(self, key: Key, run: _Run, listed: ListedAgent) -> None:
        """Take in an entry of the list; have the run looked at where it may be over."""
        over = not listed.active or listed.latest_run not in ("", key.run_id)
        if over and run.looked_at != listed:
            self.look(key)
        elif over or run.listed not in (None, listed):
            self._rounds.moved(key)
        run.listed = listed
        self._tell(key, listed)

    def _failed(self, request: _Request, failure: AgentFailure) -> None:
        passing = isinstance(failure, Unavailable | RateLimited)
        if isinstance(failure, RateLimited):
            self._hold(failure)
        if request.kind is _Kind.CANCEL:
            self._failed_to_cancel(request, failure, passing)
            return
        if request.kind is _Kind.ROUND and passing:
            self._rounds.failed()
        if isinstance(failure, RateLimited):
            wait = f"{self._hook.spec.title} grants the key no more requests for now"
            self._tell_all(RateLimited(wait, raw=failure.raw, retry_after=failure.retry_after))
        elif isinstance(request.about, Key):
            self._tell(request.about, failure)
        elif type(failure) is AgentFailed:
            # It says nothing of any run: those are looked at one by one.
            log.warning("the vendor's list of agents cannot be read: %s", failure)
            self._rounds.not_listed()
        else:
            self._tell_all(failure)
        if request.kind is _Kind.LOOK and passing:
            self._look_again(request)

    def _look_again(self, request: _Request) -> None:
        run = self._runs.get(request.about) if isinstance(request.about, Key) else None
        if run is not None:
            run.failures += 1
            later = time.monotonic() + _backoff(self._rounds.poll, run.failures)
            self._want(request, Urgency.CONFIRM, later)

    def _failed_to_cancel(self, request: _Request, failure: AgentFailure, passing: bool) -> None:
        assert isinstance(request.about, Key)
        cancel = self._cancels.get(request.about)
        if cancel is None:
            return
        if not passing:
            self._settle(request.about, failure)
            return
        cancel.tries += 1
        self._want(request, Urgency.CANCEL, time.monotonic() + _backoff(1.0, cancel.tries))

    def _hold(self, failure: RateLimited) -> None:
        """Send nothing at all for as long as the vendor asks."""
        self._limited += 1
        seconds = failure.retry_after
        if seconds is None:
            seconds = _backoff(self._rounds.poll, self._limited)
        log.warning("the vendor limits the rate of the hosted runs' poller: %.1f s", seconds)
        self._bucket.hold(min(MAX_HOLD, seconds) * random.uniform(1.0, 1.1), time.monotonic())

    def _give_up(self, key: Key) -> None:
        late = f"the run {key.run_id} could not be ended within {CANCEL_PATIENCE:.0f} s"
        self._settle(key, Unavailable(late))

    def _settle(self, key: Key, result: bool | AgentFailure) -> None:
        """Tell those who wait for the end of a run what came of it."""
        cancel = self._cancels.pop(key, None)
        self._schedule.drop(_Request(_Kind.CANCEL, key))
        self._woken.set()
        if cancel is None:
            return
        cancel.patience.cancel()
        if cancel.done.done():
            return
        if isinstance(result, AgentFailure):
            cancel.done.set_exception(result)
            # Perhaps nobody waits for it any more, and then it is no news that it is not read.
            cancel.done.exception()
        else:
            cancel.done.set_result(result)

    def _tell(self, key: Key, news: News) -> None:
        run = self._runs.get(key)
        for ticket in run.tickets if run else ():
            ticket.tell(news)

    def _tell_all(self, news: News) -> None:
        for key in self._runs:
            self._tell(key, news)

    def _forget(self, key: Key) -> None:
        del self._runs[key]
        self._rounds.remove(key)
        for kind in (_Kind.LOOK, _Kind.SIGN):
            self._schedule.drop(_Request(kind, key))

    def _set_poll(self) -> None:
        polls = [ticket.poll for run in self._runs.values() for ticket in run.tickets]
        self._rounds.poll = min(polls, default=MAX_BACKOFF)
        self._woken.set()

    async def _close(self) -> None:
        tasks = list(self._flying.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._hook.aclose()


#: The pollers and their buckets, by loop and account. A bucket outlives its poller, so that
#: triggers which come and go cannot ask more than those which stay.
_POLLERS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Poller]] = WeakKeyDictionary()
_BUCKETS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, float], Bucket]] = (
    WeakKeyDictionary()
)


def shared_poller(hook: HostedAgentHook, limits: HostedLimits) -> Poller:
    """Return the running loop's poller of a key, a new one if there is none.

    The caller watches or cancels a run before it waits for anything else: a poller with nothing to
    do ends.

    :param hook: a hook that has sent nothing yet; a new poller takes it over.
    :param limits: what the hook's key may ask for.
    """
    loop = asyncio.get_running_loop()
    pollers = _POLLERS.setdefault(loop, {})
    found = pollers.get(limits.account)
    if found is not None and found.alive:
        return found
    name = (limits.account, limits.requests_per_minute)
    buckets = _BUCKETS.setdefault(loop, {})
    bucket = buckets.setdefault(name, Bucket(limits.requests_per_minute, time.monotonic()))
    pollers[limits.account] = Poller(hook, limits, bucket)
    return pollers[limits.account]


def _backoff(first: float, failures: int) -> float:
    return min(MAX_BACKOFF, first * 2.0 ** min(failures, 10)) * random.uniform(1.0, 1.2)
