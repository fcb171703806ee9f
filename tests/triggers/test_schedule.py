"""Which request goes next, and that no minute ever has more of them than the vendor grants."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from airflow_agent_provider.triggers.schedule import MINUTE, Bucket, Schedule, Urgency


def busiest(times: list[float]) -> int:
    """Return the most requests that any minute has."""
    most, first = 0, 0
    for last, at in enumerate(times):
        while times[first] <= at - MINUTE:
            first += 1
        most = max(most, last - first + 1)
    return most


def spend(bucket: Bucket, now: float, seconds: float, pauses: list[float]) -> list[float]:
    """Send as fast as the bucket lets, with quiet times; return when each was sent."""
    sent, end = [], now + seconds
    while now < end:
        wait = bucket.wait(now)
        if wait > 0:
            now += wait
            continue
        bucket.take(now)
        sent.append(now)
        if pauses:
            now += pauses.pop()
    return sent


@given(
    st.floats(0.2, 2000),
    st.floats(0, 1e6),
    st.lists(st.one_of(st.just(0.0), st.floats(0, 90)), max_size=60),
)
def test_no_minute_has_too_many(per_minute: float, now: float, pauses: list[float]) -> None:
    sent = spend(Bucket(per_minute, now), now, 200 if per_minute > 100 else 1000, pauses)
    assert busiest(sent) <= math.ceil(per_minute)


def test_the_rate_is_used() -> None:
    # Twenty granted: two at once after a quiet time, then one every 3.3 seconds.
    sent = spend(Bucket(20, 0), 0, 600, [])
    assert sent[:2] == [0, 0]
    assert busiest(sent) == 20
    assert len(sent) == pytest.approx(2 + 600 * 18 / 60, abs=1)


def test_nobody_takes_what_is_not_there() -> None:
    bucket = Bucket(20, 0)
    bucket.take(0)
    bucket.take(0)
    with pytest.raises(ValueError, match="no request"):
        bucket.take(1)


def test_a_hold_is_for_all_and_a_shorter_one_does_not_end_it() -> None:
    schedule: Schedule[str] = Schedule(bucket := Bucket(20, 0))
    schedule.want("cancel", Urgency.CANCEL)
    bucket.hold(30, 0)
    bucket.hold(5, 1)
    assert schedule.next(29) is None
    assert schedule.wait(10) == pytest.approx(20)
    assert schedule.next(30) == "cancel"


def test_the_urgent_go_first_and_equals_in_turn() -> None:
    schedule: Schedule[str] = Schedule(Bucket(60_000, 0))
    wanted = {"sign": 3, "page": 2, "look 1": 1, "look 2": 1, "cancel": 0}
    for request, urgency in wanted.items():
        schedule.want(request, Urgency(urgency))
    # Wanting it again does not cost it its place.
    schedule.want("look 1", Urgency.CONFIRM)
    schedule.drop("page")
    assert [schedule.next(0) for _ in range(5)] == ["cancel", "look 1", "look 2", "sign", None]
    assert schedule.wait(0) is None


def test_what_is_not_due_holds_up_nobody() -> None:
    schedule: Schedule[str] = Schedule(Bucket(60_000, 0))
    schedule.want("cancel again", Urgency.CANCEL, not_before=7)
    schedule.want("sign", Urgency.SIGN)
    assert schedule.next(0) == "sign"
    assert schedule.next(1) is None
    assert schedule.wait(1) == 6
    assert schedule.next(7) == "cancel again"


def test_the_less_urgent_can_be_left_alone() -> None:
    schedule: Schedule[str] = Schedule(Bucket(60_000, 0))
    schedule.want("sign", Urgency.SIGN)
    assert schedule.next(0, Urgency.ROUND) is None
    assert schedule.wait(0, Urgency.ROUND) is None
    schedule.want("page", Urgency.ROUND, not_before=3)
    assert schedule.wait(1, Urgency.ROUND) == 2
    assert schedule.next(3, Urgency.ROUND) == "page"
    assert schedule.next(3) == "sign"


class Traffic(RuleBasedStateMachine):
    """Requests come, go, are held up and are sent, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.per_minute = 20
        self.bucket = Bucket(self.per_minute, self.now)
        self.schedule: Schedule[int] = Schedule(self.bucket)
        self.wanted: dict[int, tuple[Urgency, float]] = {}
        self.held_until = -math.inf
        self.sent: list[float] = []

    @rule(request=st.integers(0, 9), urgency=st.sampled_from(Urgency), later=st.floats(0, 40))
    def want(self, request: int, urgency: Urgency, later: float) -> None:
        self.schedule.want(request, urgency, self.now + later)
        self.wanted[request] = (urgency, self.now + later)

    @rule(request=st.integers(0, 9))
    def drop(self, request: int) -> None:
        self.schedule.drop(request)
        self.wanted.pop(request, None)

    @rule(seconds=st.floats(0, 100))
    def hold(self, seconds: float) -> None:
        self.bucket.hold(seconds, self.now)
        self.held_until = max(self.held_until, self.now + seconds)

    @rule(seconds=st.floats(0, 30))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def send(self) -> None:
        due = [place for place in self.wanted.values() if place[1] <= self.now]
        request = self.schedule.next(self.now)
        if request is None:
            assert not due or self.bucket.wait(self.now) > 0
            return
        urgency, not_before = self.wanted.pop(request)
        assert not_before <= self.now >= self.held_until
        assert urgency == min(place[0] for place in due)
        self.sent.append(self.now)
        assert busiest(self.sent) <= self.per_minute

    @precondition(lambda self: self.wanted)
    @rule()
    def wait_as_told(self) -> None:
        """After the time that it tells, there is a request: nobody waits for nothing."""
        wait = self.schedule.wait(self.now)
        assert wait is not None
        self.now += wait
        if (more := self.schedule.wait(self.now)) is not None and more > 0:
            assert more < 1e-6  # What is lost in the sum of floats.
            self.now += more
        assert self.schedule.wait(self.now) == 0
        self.send()

    @invariant()
    def both_know_the_same(self) -> None:
        assert all(request in self.schedule for request in self.wanted)
        assert (self.schedule.wait(self.now) is None) == (not self.wanted)


TestTraffic = Traffic.TestCase
