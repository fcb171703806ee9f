"""Waiting for an agent: every way in which it can end, with small real times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_agent_provider.agents import watch
from airflow_agent_provider.agents.contract import Limits
from airflow_agent_provider.agents.failures import AgentFailure, Stalled, TimedOut, Unavailable
from airflow_agent_provider.agents.watch import Overdue, watched, within


class Agent:
    """An agent that says things at given times, and ends its turn when it is interrupted.

    :param script: pauses in seconds, and things to say; None pauses until the interrupt.
    """

    def __init__(self, *script: float | str | None) -> None:
        self.script = script
        self.interrupted = threading.Event()
        self.interrupts = 0

    def interrupt(self) -> None:
        self.interrupts += 1
        self.interrupted.set()

    def events(self) -> Iterator[str]:
        for step in self.script:
            if isinstance(step, str):
                yield step
            elif self.interrupted.wait(20 if step is None else step):
                yield "last words"
                return


def collect(events: Iterator[Any]) -> tuple[list[Any], BaseException | None]:
    seen: list[Any] = []
    try:
        for event in events:
            seen.append(event)
    except Exception as error:
        return seen, error
    return seen, None


def limits(timeout: float = 20, stall: float = 20) -> Limits:
    return Limits(timeout=timeout, stall=stall)


def test_events_come_in_order_and_end_without_an_interrupt() -> None:
    agent = Agent(*[str(n) for n in range(3000)])
    seen, error = collect(watched(agent.events(), limits(), agent.interrupt))
    assert (seen, error) == ([str(n) for n in range(3000)], None)
    assert not agent.interrupts


def test_an_exception_of_the_events_comes_unchanged() -> None:
    def events() -> Iterator[str]:
        yield "one"
        raise KeyError("the SDK's own")

    seen, error = collect(watched(events(), limits(), lambda: None))
    assert seen == ["one"]
    assert isinstance(error, KeyError)


def test_silence_is_a_stall_after_which_the_last_words_still_come() -> None:
    agent = Agent("one", None)
    seen, error = collect(watched(agent.events(), limits(stall=0.2), agent.interrupt))
    assert seen == ["one", "last words"]
    assert isinstance(error, Stalled)
    assert agent.interrupts == 1


def test_the_deadline_ends_an_agent_that_never_stops_talking() -> None:
    stop = threading.Event()

    def events() -> Iterator[str]:
        while not stop.wait(0.001):
            yield "and"

    seen, error = collect(watched(events(), limits(timeout=0.3, stall=5), stop.set))
    assert isinstance(error, TimedOut)
    assert seen


def test_an_agent_that_ignores_the_interrupt_is_given_up_after_the_grace() -> None:
    stop = threading.Event()

    def events() -> Iterator[str]:
        stop.wait(20)
        yield "too late"

    started = time.monotonic()
    try:
        seen, error = collect(watched(events(), limits(timeout=0.1), lambda: None, grace=0.3))
        assert (seen, type(error)) == ([], TimedOut)
        assert time.monotonic() - started < 10
    finally:
        stop.set()


def test_an_interrupt_that_hangs_or_raises_keeps_nobody_waiting() -> None:
    stop = threading.Event()
    for interrupt in (lambda: stop.wait(20), lambda: 1 / 0):
        agent = Agent(None)
        started = time.monotonic()
        _, error = collect(watched(agent.events(), limits(stall=0.1), interrupt, grace=0.2))
        assert isinstance(error, Stalled)
        assert time.monotonic() - started < 10
        agent.interrupt()
    stop.set()


def test_time_spent_on_an_event_is_no_silence() -> None:
    agent = Agent("one", "two", "three")
    seen = []
    for event in watched(agent.events(), limits(stall=0.2), agent.interrupt):
        time.sleep(0.4)
        seen.append(event)
    assert seen == ["one", "two", "three"]


def test_whoever_stops_listening_interrupts_the_agent() -> None:
    agent = Agent("one", None)
    events = watched(agent.events(), limits(), agent.interrupt)
    assert next(events) == "one"
    events.close()  # type: ignore[attr-defined]
    assert agent.interrupted.wait(5)


def in_trouble(event: str) -> AgentFailure | None:
    return Unavailable("no network") if event == "retry" else None


def test_nothing_but_trouble_is_its_failure_once_patience_is_over() -> None:
    agent = Agent("one", *["retry", 0.05] * 100)
    seen, error = collect(
        watched(agent.events(), limits(), agent.interrupt, trouble=in_trouble, patience=0.3)
    )
    assert isinstance(error, Unavailable)
    assert seen[:2] == ["one", "retry"]
    assert len(seen) < 50


def test_trouble_that_passes_is_forgotten() -> None:
    agent = Agent(*["retry", 0.15, "progress", 0.15] * 4)
    _, error = collect(
        watched(agent.events(), limits(), agent.interrupt, trouble=in_trouble, patience=0.25)
    )
    assert error is None


def test_trouble_is_no_sign_of_life() -> None:
    agent = Agent(*["retry", 0.1] * 100)
    _, error = collect(
        watched(agent.events(), limits(stall=0.5), agent.interrupt, trouble=in_trouble, patience=60)
    )
    assert isinstance(error, Stalled)


def test_the_reader_lets_the_agent_wait_while_the_step_is_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "_QUEUE_LENGTH", 3)
    said = []

    def events() -> Iterator[int]:
        for number in range(100):
            said.append(number)
            yield number

    stream = watched(events(), limits(), lambda: None)
    next(stream)
    time.sleep(0.3)
    assert len(said) <= 6
    assert len(list(stream)) == 99


def test_within_returns_raises_or_is_overdue() -> None:
    assert within(5, lambda: 7, "counting") == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0, "dividing")
    with pytest.raises(TimeoutError, match="its own"):
        within(5, _times_out, "calling")
    with pytest.raises(Overdue, match=r"sleeping took longer than 0\.1 seconds"):
        within(0.1, lambda: time.sleep(2), "sleeping")


def _times_out() -> None:
    raise TimeoutError("its own")


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


Step = tuple[str, float]


@settings(max_examples=200, deadline=None)
@given(
    timeout=st.floats(1, 50),
    stall=st.floats(1, 50),
    patience=st.floats(1, 50),
    steps=st.lists(
        st.tuples(st.sampled_from(["wait", "event", "trouble", "work"]), st.floats(0, 20)),
        max_size=30,
    ),
)
def test_the_patrol_raises_exactly_when_a_limit_is_passed(
    timeout: float, stall: float, patience: float, steps: list[Step]
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", clock)
        patrol = watch._Patrol(Limits(timeout, stall, started=clock.now), patience)
        model = Model(clock, timeout, stall, patience)
        for kind, seconds in steps:
            assert patrol.wait() == pytest.approx(model.left(), abs=1e-6)
            verdict = patrol.verdict()
            # At the very edge, rounding decides.
            if abs(model.left()) > 1e-6:
                assert (verdict is None) == (model.left() > 0)
            model.step(kind, seconds, patrol)


class Model:
    """What the patrol should know, told the long way round."""

    def __init__(self, clock: Clock, timeout: float, stall: float, patience: float) -> None:
        self.clock, self.stall, self.patience = clock, stall, patience
        self.end = clock.now + timeout
        self.waited = 0.0
        self.trouble_at: float | None = None

    def left(self) -> float:
        ends = [self.end - self.clock.now, self.stall - self.waited]
        if self.trouble_at is not None:
            ends.append(self.trouble_at + self.patience - self.clock.now)
        return max(0.0, min(ends))

    def step(self, kind: str, seconds: float, patrol: watch._Patrol) -> None:
        steps: dict[str, Callable[[], None]] = {
            "wait": lambda: self._wait(seconds),
            "event": lambda: self._event(None, patrol),
            "trouble": lambda: self._event(Unavailable("no network"), patrol),
            "work": lambda: self._work(seconds, patrol),
        }
        steps[kind]()

    def _wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.waited += seconds

    def _event(self, trouble: AgentFailure | None, patrol: watch._Patrol) -> None:
        if trouble is None:
            self.waited, self.trouble_at = 0.0, None
        elif self.trouble_at is None:
            self.trouble_at = self.clock.now
        patrol.note(trouble)
        patrol.resume()

    def _work(self, seconds: float, patrol: watch._Patrol) -> None:
        # An event is dealt with for some time before the next wait begins.
        self.waited, self.trouble_at = 0.0, None
        patrol.note(None)
        self.clock.now += seconds
        patrol.resume()


class Trouble:
    """What the agent hides: requests that fail until :attr:`over`, every so many seconds."""

    def __init__(self, every: float, over: float = 20.0) -> None:
        self.since: float | None = None
        self.every, self.over = every, over

    def __call__(self) -> watch.Standing | None:
        # The first request is made once the turn has begun.
        self.since = self.since or time.monotonic()
        passed = time.monotonic() - self.since
        if passed > self.over:
            return None
        latest = self.since + passed // self.every * self.every
        return watch.Standing(Unavailable("hidden"), self.since, latest)


def test_trouble_that_an_agent_hides_is_raised_once_patience_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "_STANDING_POLL", 0.02)
    for agent in (Agent(None), Agent(*["it tries again", 0.05] * 400)):
        started = time.monotonic()
        _, error = collect(
            watched(agent.events(), limits(), agent.interrupt, standing=Trouble(0.1), patience=0.4)
        )
        assert isinstance(error, Unavailable)
        # Not before failures in a row have lasted for so long, and not when the agent gives up.
        assert 0.4 <= time.monotonic() - started < 15
        assert agent.interrupts == 1


def test_one_failed_request_is_no_trouble_while_the_agent_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "_STANDING_POLL", 0.02)
    agent = Agent(0.2, "a", 0.5, "b")
    events = watched(
        agent.events(), limits(), agent.interrupt, standing=Trouble(100), patience=0.05
    )
    assert collect(events) == (["a", "b"], None)


def test_trouble_that_has_passed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_STANDING_POLL", 0.02)
    agent = Agent(1.0, "a")
    events = watched(
        agent.events(), limits(), agent.interrupt, standing=Trouble(0.05, over=0.2), patience=0.5
    )
    assert collect(events) == (["a"], None)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        # The last that was seen of the agent is its failed request.
        ((None,), Unavailable),
        # It went on after that, and then fell silent.
        ((0.2, "a", None), Stalled),
    ],
)
def test_a_stall_is_the_trouble_behind_it(script: tuple[Any, ...], expected: type) -> None:
    agent = Agent(*script)
    _, error = collect(
        watched(agent.events(), limits(stall=0.5), agent.interrupt, standing=Trouble(100))
    )
    assert type(error) is expected
