"""What a poller looks at next: pages of the list where that is cheaper, single runs elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_agent_provider.triggers.rounds import BACKSTOP, MAX_BACKOFF, Key, Page, Rounds

PACE = 5.0


@dataclass
class World:
    """A vendor whose list has ``listed``, newest first, and a clock that goes on by itself."""

    rounds: Rounds
    listed: list[str]
    now: float = 0.0
    log: list[tuple[float, Page | Key]] = field(default_factory=list)
    seen: dict[str, float] = field(default_factory=dict)
    size: int = 100

    def step(self) -> Page | Key:
        """Wait for the next item, ask for it, and tell the rounds what came of it."""
        planned = self.rounds.next()
        assert planned is not None
        item, due = planned
        assert due >= self.now or not self.log or due >= self.log[-1][0]
        self.now = max(self.now, due)
        self.rounds.sent(item, self.now)
        self.log.append((self.now, item))
        self.answer(item)
        return item

    def answer(self, item: Page | Key) -> None:
        if isinstance(item, Key):
            self.seen[item.agent_id] = self.now
            self.rounds.saw(item)
            return
        start = self.listed.index(item.cursor) if item.cursor else 0
        page = self.listed[start : start + self.size]
        more = start + self.size < len(self.listed)
        self.seen |= dict.fromkeys(page, self.now)
        self.rounds.listed(set(page), self.listed[start + self.size] if more else None)

    def until(self, end: float) -> None:
        while (planned := self.rounds.next()) and planned[1] <= end:
            self.step()
        self.now = end

    def pages(self) -> int:
        return sum(isinstance(item, Page) for _, item in self.log)

    def looks(self) -> list[Key]:
        return [item for _, item in self.log if isinstance(item, Key)]

    def oldest(self, waiting: list[str]) -> float:
        """Return when it last heard of the run that it knows least of."""
        return min(self.seen.get(agent_id, -math.inf) for agent_id in waiting)


def world(waiting: list[str], listed: list[str], poll: float = 10.0, pace: float = PACE) -> World:
    rounds = Rounds(pace, 0.0, jitter=lambda: 1.0)
    rounds.poll = poll
    for agent_id in waiting:
        rounds.add(key(agent_id))
    return World(rounds, listed)


def key(agent_id: str) -> Key:
    return Key(agent_id, f"run of {agent_id}")


def agents(count: int, name: str = "a") -> list[str]:
    return [f"{name}{number:05}" for number in range(count)]


def test_nobody_waits() -> None:
    assert world([], agents(3)).rounds.next() is None


def test_one_run_is_looked_at_by_itself() -> None:
    alone = world(agents(1), agents(500))
    alone.until(100)
    assert (len(alone.log), alone.pages()) == (11, 0)


def test_two_runs_are_seen_with_one_request() -> None:
    both = world(agents(2), agents(2))
    both.until(100)
    assert both.pages() == 11
    # Only the look that is taken at somebody every now and then.
    assert len(both.looks()) <= 100 / BACKSTOP + 1


def test_a_thousand_runs_are_ten_pages() -> None:
    many = world(agents(1000), agents(1000))
    many.until(70)
    assert many.oldest(agents(1000)) >= 0
    many.until(600)
    # Twelve items a minute, two of them looks.
    assert many.pages() == pytest.approx(600 / PACE - 600 / BACKSTOP, abs=5)
    assert many.oldest(agents(1000)) > 600 - 70


def test_few_runs_far_behind_are_not_searched_for_ever() -> None:
    listed = agents(10_000)
    far = world(listed[5000:5002], listed)
    far.until(600)
    assert far.oldest(listed[5000:5002]) > 550
    # A search costs no more than the looks that it might save.
    assert far.pages() <= len(far.log) / 2 + 2


def test_runs_behind_many_others_are_found_where_it_pays() -> None:
    listed = agents(1000)
    behind = world(listed[600:700], listed, pace=1.0)
    behind.until(300)
    assert behind.oldest(listed[600:700]) > 280
    assert len(behind.looks()) <= 300 / BACKSTOP + 1


def test_what_the_list_does_not_show_is_looked_at_beside_it() -> None:
    missing = world(agents(200) + agents(2, "gone"), agents(200))
    missing.until(120)
    assert missing.oldest(agents(200) + agents(2, "gone")) > 80
    assert missing.pages() > 10


def test_a_list_that_shows_nothing_for_a_while_is_believed_again() -> None:
    lost = world(agents(300), [], poll=10, pace=0.1)
    lost.until(20)
    assert len(lost.looks()) > 100
    lost.listed = agents(300)
    lost.until(120)
    lost.log.clear()
    lost.until(220)
    assert lost.pages() >= 27


def test_a_new_run_is_in_the_next_sweep() -> None:
    growing = world(agents(150), agents(150))
    growing.until(60)
    growing.listed = ["new", *growing.listed]
    growing.rounds.add(key("new"))
    growing.until(80)
    assert growing.seen["new"] > 60


def test_who_left_is_looked_at_no_more() -> None:
    leaving = world(agents(3), agents(3))
    leaving.step()
    for agent_id in agents(3)[1:]:
        leaving.rounds.remove(key(agent_id))
    leaving.log.clear()
    leaving.until(60)
    assert {item for _, item in leaving.log} == {key(agents(1)[0])}


def test_who_moved_is_looked_at_in_turn_with_the_pages() -> None:
    moving = world(agents(300), agents(300), poll=1)
    moving.until(30)
    moving.log.clear()
    moved = agents(120)[100:]
    for agent_id in moved:
        moving.rounds.moved(key(agent_id))
    # It moves again, and steps back.
    moving.rounds.moved(key(moved[0]))
    moving.until(30 + 50 * PACE)
    looks = [look for look in moving.looks() if look.agent_id in moved]
    assert looks == [key(agent_id) for agent_id in [*moved[1:], moved[0]]]
    assert moving.pages() >= 20


def test_who_is_never_suspect_is_looked_at_in_the_end() -> None:
    quiet = world(agents(5), agents(5))
    quiet.until(5 * BACKSTOP + 60)
    assert set(quiet.looks()) == set(map(key, agents(5)))


def test_trouble_makes_it_slower_and_an_answer_quick_again() -> None:
    troubled = world(agents(1), agents(1))
    gaps = []
    for _ in range(5):
        planned = troubled.rounds.next()
        assert planned is not None
        gaps.append(planned[1] - troubled.now)
        troubled.now = planned[1]
        troubled.rounds.sent(planned[0], troubled.now)
        troubled.rounds.failed()
    assert gaps[1:] == [20, 40, MAX_BACKOFF, MAX_BACKOFF]
    troubled.rounds.saw(key(agents(1)[0]))
    planned = troubled.rounds.next()
    assert planned is not None
    assert planned[1] - troubled.now == 10


def test_a_list_that_is_refused_costs_no_run() -> None:
    refusing = world(agents(4), agents(4), pace=1.0)
    refused = 0
    while refusing.now < 100:
        planned = refusing.rounds.next()
        assert planned is not None
        item, refusing.now = planned
        refusing.rounds.sent(item, refusing.now)
        if isinstance(item, Page):
            refused += 1
            refusing.rounds.not_listed()
        else:
            refusing.answer(item)
    assert refusing.oldest(agents(4)) > 80
    assert refused <= 40


def test_an_agent_without_a_list() -> None:
    listless = world(agents(4), agents(4))
    listless.rounds.no_list()
    listless.until(100)
    assert listless.pages() == 0
    assert listless.oldest(agents(4)) > 70


@given(
    st.sets(st.integers(0, 40), max_size=40),
    st.sets(st.integers(0, 60), max_size=50),
    st.integers(1, 7),
    st.floats(0.5, 30),
)
def test_everybody_is_looked_at(
    waiting: set[int], listed: set[int], size: int, poll: float
) -> None:
    """Whatever the list shows: nobody is forgotten, and it costs at most twice what it must."""
    names = agents(61)
    who = [names[number] for number in waiting]
    some = world(who, [names[number] for number in sorted(listed)], poll, pace=1.0)
    some.size = size
    some.until(400.0)
    if not who:
        assert some.log == []
        return
    # The two lanes in turn, each through all of its items, and a search now and then.
    items = 2 * (len(who) + math.ceil(len(listed) / size) + 2)
    assert some.oldest(who) >= 400 - max(2.5 * poll, 2.0 * items) - BACKSTOP
    # Never closer to each other than the pace allows.
    times = [at for at, _ in some.log]
    assert all(after - before >= 0.999 for before, after in pairwise(times))


@given(st.sets(st.integers(0, 99), min_size=2, max_size=60), st.integers(1, 10))
def test_a_sweep_is_cheap(waiting: set[int], size: int) -> None:
    """It takes no more requests than twice the cheaper of pages alone and looks alone."""
    names = agents(100)
    some = world([names[number] for number in waiting], names, poll=1000, pace=1e-6)
    some.size = size
    some.until(999)
    asked = [item for at, item in some.log if not (isinstance(item, Key) and at >= BACKSTOP)]
    backstops = 999 / BACKSTOP + 1
    assert len(asked) <= 2 * min(len(waiting), math.ceil(100 / size)) + backstops
