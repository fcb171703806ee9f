"""The rounds of a poller: which page of the vendor's list, or which run, is looked at next.

A page of the list tells of up to a hundred runs at the price of one request, so pages are read as
long as that is cheaper than to look at the runs one by one. What the list does not show, or may
not show, is looked at by itself. Nothing here reads a clock or sends anything.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

#: Seconds between two items while the vendor does not answer, at most.
MAX_BACKOFF = 60.0
#: Seconds between two looks at runs that the list shows as at work: a vendor may call an agent
#: active whose run is over. The run that was looked at longest ago comes first.
BACKSTOP = 60.0
#: Refusals of the list in a row after which its runs are looked at one by one.
_REFUSALS = 2


@dataclass(frozen=True)
class Key:
    """A run that somebody waits for.

    :param agent_id: the vendor's id of the agent.
    :param run_id: the vendor's id of the run.
    """

    agent_id: str
    run_id: str


@dataclass(frozen=True)
class Page:
    """A page of the list.

    :param cursor: where it begins; empty for the first one.
    """

    cursor: str = ""


class Rounds:
    """Paces the looks at all runs that are waited for.

    Pages of the list and looks at single runs take turns as they are due. Both go through all
    their items in :attr:`poll` seconds if the pace allows, else as often as they can, so that
    neither starves the other.

    :param pace: seconds between any two items, at least.
    :param start: the monotonic clock's seconds before which nothing is due.
    :param jitter: returns a factor around 1 for each wait; it keeps the pollers of several
        triggerers from asking in step.
    """

    def __init__(
        self,
        pace: float,
        start: float,
        jitter: Callable[[], float] = lambda: random.uniform(0.9, 1.1),
    ) -> None:
        #: Seconds in which every run is looked at once, if the pace allows.
        self.poll = MAX_BACKOFF
        self._pace = pace
        self._start = start
        self._jitter = jitter
        self._factor = jitter()
        self._failures = 0
        # Every run; the one that was looked at longest ago comes first.
        self._waiting: dict[Key, None] = {}
        self._moved: dict[Key, None] = {}
        self._sweep = _Sweep()
        self._sent_at = self._due = self._page_at = self._look_at = -math.inf
        self._backstop_at = start

    def add(self, key: Key) -> None:
        """Begin to look at a run."""
        self._waiting[key] = None

    def remove(self, key: Key) -> None:
        """Look at a run no more."""
        self._waiting.pop(key, None)
        self._moved.pop(key, None)
        self._sweep.forget(key)

    def moved(self, key: Key) -> None:
        """Have a run looked at whose entry in the list has changed without showing an end.

        One that goes on moving steps back each time: it lives, and one that has come to rest is
        looked at sooner.
        """
        self._moved.pop(key, None)
        self._moved[key] = None

    def next(self) -> tuple[Page | Key, float] | None:
        """Return the next item and when it is due: the monotonic clock's seconds.

        It stays the same until it was sent; None if no run is waited for.
        """
        if not self._waiting:
            return None
        item, due = min(self._lanes(), key=lambda lane: lane[1])
        gap = self._pace
        if self._failures:
            gap = max(gap, min(MAX_BACKOFF, self.poll * 2.0 ** min(self._failures, 10)))
        self._due = max(due, self._start, self._sent_at + gap * self._factor)
        return item, self._due

    def sent(self, item: Page | Key, now: float) -> None:
        """Note that ``item`` is under way."""
        # One that had to wait for others, since they were urgent, does not delay the next one.
        self._sent_at, self._factor = max(self._due, now - self._pace), self._jitter()
        if isinstance(item, Page):
            self._page_at = now
        elif item in self._moved or item in self._alone():
            self._look_at = now
            self._sweep.missed += item in self._sweep.apart
        else:
            self._backstop_at = now

    def saw(self, key: Key) -> None:
        """Note that a run was looked at, in its turn or out of it."""
        self._failures = 0
        self._moved.pop(key, None)
        if key in self._waiting:
            del self._waiting[key]
            self._waiting[key] = None

    def listed(self, agent_ids: Collection[str], cursor: str | None) -> None:
        """Note what a page has shown.

        :param agent_ids: the agents on it.
        :param cursor: where the next page begins; None if there is none.
        """
        self._failures = 0
        self._sweep.saw({key for key in self._waiting if key.agent_id in agent_ids}, cursor)

    def not_listed(self) -> None:
        """Note that the vendor has refused a page, as one does that has no list."""
        self._sweep.refused()

    def no_list(self) -> None:
        """Note that the vendor has no list at all."""
        self._sweep.refused()
        self._sweep.exists = False

    def failed(self) -> None:
        """Note that an item got no answer: the next one has more time."""
        self._failures += 1

    def _lanes(self) -> Iterable[tuple[Page | Key, float]]:
        if self._sweep.goes_on(self._waiting):
            gap = self.poll / self._sweep.length
            yield Page(self._sweep.cursor), self._page_at + gap * self._factor
            yield next(iter(self._waiting)), self._backstop_at + BACKSTOP * self._factor
        if self._moved:
            yield next(iter(self._moved)), self._look_at
        elif alone := self._alone():
            key = next(key for key in self._waiting if key in alone)
            yield key, self._look_at + self.poll / len(alone) * self._factor

    def _alone(self) -> Collection[Key]:
        return self._sweep.apart if self._sweep.under_way else self._waiting


class _Sweep:
    """One pass after the other through the pages of the list."""

    def __init__(self) -> None:
        self.exists = True
        self.under_way = False
        self.cursor = ""
        # Pages that the last complete pass has read, and this one so far.
        self._length = 1
        #: Runs that the list did not show: deleted, archived, or too far behind to search on.
        self.apart: set[Key] = set()
        #: Looks at those since the list was last searched for them.
        self.missed = 0
        self._unfound: set[Key] = set()
        self._pages = 0
        self._fruitless = 0
        self._refusals = 0

    @property
    def length(self) -> int:
        """The pages that a pass takes, as far as is known."""
        return max(self._length, self._pages + 1)

    def goes_on(self, waiting: Collection[Key]) -> bool:
        """Return whether there is a page to read; begin a new pass where one is worth it."""
        if self.under_way or not self.exists:
            return self.under_way
        unfound = set(waiting) - self.apart
        if self.missed >= len(self.apart):
            # The looks at them have cost what a search costs: perhaps the list shows them now.
            unfound |= self.apart
        if len(unfound) < 2:
            return False
        if self.apart & unfound:
            self.missed = 0
        self.under_way, self.cursor, self._unfound = True, "", unfound
        self._pages = self._fruitless = 0
        return True

    def saw(self, found: set[Key], cursor: str | None) -> None:
        """Take in a page; the pass ends once another page would cost more than it can tell."""
        self._refusals = 0
        self.apart -= found
        self._unfound -= found
        self._pages += 1
        self._fruitless += not found
        if cursor and self._fruitless < len(self._unfound):
            self.cursor = cursor
        else:
            self.apart |= self._unfound
            self._length, self._pages = self._pages, 0
            self.under_way = False

    def refused(self) -> None:
        """End the pass; one that begins anew may fare better, but not for ever."""
        self._refusals += 1
        if self._refusals >= _REFUSALS:
            self.apart |= self._unfound
            self._refusals = 0
        self.under_way = False

    def forget(self, key: Key) -> None:
        """Search for a run no more."""
        self.apart.discard(key)
        self._unfound.discard(key)
        if not self._unfound:
            self.under_way = False
