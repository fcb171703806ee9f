"""Which request to a vendor is sent next, and when: within the rate that the vendor grants a key.

Nothing here reads a clock or sends anything, so every promise can be tested at once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

#: Seconds in which a vendor counts requests.
MINUTE = 60.0
#: The share of the rate that flows evenly; what is left may be sent at once after a quiet time.
_STEADY = 0.9

Request = TypeVar("Request", bound=Hashable)


class Urgency(IntEnum):
    """Who goes first where several requests wait for their turn."""

    #: End a run: it costs money until then.
    CANCEL = 0
    #: Look at a run that the list shows as over.
    CONFIRM = 1
    #: The rounds that find out where all runs stand; they pace themselves, see ``rounds.py``.
    ROUND = 2
    #: Ask a quiet run for a sign of life. A thousand of them may be due at once.
    SIGN = 3


class Bucket:
    """A token bucket: never more than ``per_minute`` requests in any minute.

    :param per_minute: what the vendor grants.
    :param now: the monotonic clock's seconds.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._capacity = max(1.0, math.floor(per_minute / 10))
        self._tokens = self._capacity
        self._at = now
        self._held_until = -math.inf
        #: Requests a second that can go on for ever.
        self.rate = _STEADY * per_minute / MINUTE

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be sent, 0 if it may be sent now."""
        missing = 1.0 - self._level(now)
        # Not below what a float can tell from the time, or the wait would never be over.
        refill = max(missing / self.rate, math.ulp(now)) if missing > 1e-9 else 0.0
        return max(0.0, self._held_until - now, refill)

    def take(self, now: float) -> None:
        """Count a request that is sent now.

        :raises ValueError: if it may not be sent now.
        """
        if self.wait(now) > 0:
            raise ValueError("no request may be sent now")
        self._tokens, self._at = max(0.0, self._level(now) - 1.0), now

    def hold(self, seconds: float, now: float) -> None:
        """Let nobody send anything for ``seconds``: the vendor asks to wait."""
        self._held_until = max(self._held_until, now + seconds)

    def _level(self, now: float) -> float:
        return min(self._capacity, self._tokens + max(0.0, now - self._at) * self.rate)


@dataclass(frozen=True)
class _Place:
    urgency: Urgency
    number: int
    not_before: float

    @property
    def order(self) -> tuple[int, int]:
        return (self.urgency, self.number)


class Schedule(Generic[Request]):
    """The requests that are wanted, and whose turn it is.

    :param bucket: what may be sent when.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._wanted: dict[Request, _Place] = {}
        self._count = 0

    def __contains__(self, request: Request) -> bool:
        return request in self._wanted

    def want(self, request: Request, urgency: Urgency, not_before: float = -math.inf) -> None:
        """Let ``request`` be sent. One that is wanted already keeps its place in the queue.

        :param request: what to send.
        :param urgency: who it goes before.
        :param not_before: the monotonic clock's seconds before which it is not due.
        """
        known = self._wanted.get(request)
        self._count += 1
        number = self._count if known is None or known.urgency != urgency else known.number
        self._wanted[request] = _Place(urgency, number, not_before)

    def drop(self, request: Request) -> None:
        """Forget a request; harmless if it is not wanted."""
        self._wanted.pop(request, None)

    def next(self, now: float, least: Urgency = Urgency.SIGN) -> Request | None:
        """Return the request to send now, None if none is due or none may be sent.

        :param now: the monotonic clock's seconds.
        :param least: what is less urgent is left alone.
        """
        if self._bucket.wait(now) > 0:
            return None
        due = [
            item
            for item in self._wanted.items()
            if item[1].not_before <= now and item[1].urgency <= least
        ]
        if not due:
            return None
        request, _ = min(due, key=lambda item: item[1].order)
        del self._wanted[request]
        self._bucket.take(now)
        return request

    def wait(self, now: float, least: Urgency = Urgency.SIGN) -> float | None:
        """Return the seconds until :meth:`next` has a request, None if none is wanted."""
        times = [place.not_before for place in self._wanted.values() if place.urgency <= least]
        if not times:
            return None
        return max(self._bucket.wait(now), min(times) - now, 0.0)
