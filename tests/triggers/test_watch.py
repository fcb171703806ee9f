"""When a hosted run is given up, and how long to wait between two looks at it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.hooks.agent import HostedRun, ListedAgent
from airflow_agent_provider.triggers.watch import MAX_BACKOFF, Decision, RunWatch, Verdict, Waiter


def running(status: str = "RUNNING", updated_at: str = "1") -> HostedRun:
    return HostedRun("bc-1", "run-1", status, ended=False, updated_at=updated_at)


def waiter(timeout: float = 1000, stall: float = 100, poll: float = 10) -> Waiter:
    return Waiter(title="Cursor", run_id="run-1", timeout=timeout, stall=stall, poll=poll, now=0.0)


def test_a_change_is_a_sign_of_life() -> None:
    watch = RunWatch(timeout=1000, stall=10, now=0)
    assert watch.observe("CREATING", "1", 9) is None
    assert watch.observe("RUNNING", "1", 18) is None
    assert watch.observe("RUNNING", "2", 27) is None
    assert watch.observe("RUNNING", "2", 36, sign="event 1") is None
    assert watch.observe("RUNNING", "2", 46, sign="event 1") is Verdict.STALLED


def test_what_was_never_seen_stalls_too() -> None:
    assert RunWatch(timeout=1000, stall=10, now=0).judge(10) is Verdict.STALLED


def test_the_timeout_is_over_for_the_lively_too() -> None:
    watch = RunWatch(timeout=20, stall=10, now=0)
    assert watch.observe("RUNNING", "1", 15) is None
    assert watch.observe("RUNNING", "2", 20) is Verdict.TIMED_OUT


_steps = st.lists(
    st.tuples(st.floats(0.01, 50), st.sampled_from("ab"), st.sampled_from("12")), max_size=30
)


@given(_steps, st.floats(1, 100), st.floats(1, 100))
def test_the_watch_agrees_with_its_history(
    steps: list[tuple[float, str, str]], timeout: float, stall: float
) -> None:
    watch = RunWatch(timeout=timeout, stall=stall, now=0)
    now, changed, mark = 0.0, 0.0, None
    for wait, status, updated_at in steps:
        now += wait
        if (status, updated_at) != mark:
            mark, changed = (status, updated_at), now
        verdict = watch.observe(status, updated_at, now)
        assert (verdict is Verdict.TIMED_OUT) == (now >= timeout)
        assert (verdict is Verdict.STALLED) == (now < timeout and now - changed >= stall)
        if verdict is None:
            assert watch.left(now) > 0


def test_the_end_ends_the_wait() -> None:
    failure = f.Interrupted("gone")
    assert waiter().saw(HostedRun("a", "r", "FINISHED", ended=True), 1) == Decision()
    ended = HostedRun("a", "r", "CANCELLED", ended=True, failure=failure)
    assert waiter().saw(ended, 1) == Decision(failure=failure)


def test_a_quiet_run_is_asked_for_a_sign_before_it_is_given_up() -> None:
    watching = waiter()
    assert watching.saw(running(), 0).wait is not None
    assert watching.saw(running(), 100).ask
    # It works: its events went on.
    assert watching.heard("event 7", 101).wait is not None
    assert watching.saw(running(), 150).wait is not None
    assert watching.saw(running(), 201).ask
    given_up = watching.heard("event 7", 202)
    assert (type(given_up.failure), given_up.cancel) == (f.Stalled, True)
    assert "no sign of life for 100 s; its last status was RUNNING" in str(given_up.failure)


def test_the_timeout_cancels() -> None:
    given_up = waiter(timeout=50).saw(running(), 50)
    assert (type(given_up.failure), given_up.cancel) == (f.TimedOut, True)
    assert "within 50 s" in str(given_up.failure)


@pytest.mark.parametrize("failure", [f.Unavailable("down"), f.RateLimited("slow")])
def test_trouble_on_the_way_is_waited_out(failure: f.AgentFailure) -> None:
    watching = waiter()
    first, second = watching.failed(failure, 1), watching.failed(failure, 2)
    assert first.wait is not None
    assert second.wait is not None
    assert 20 <= first.wait <= 24 < second.wait <= MAX_BACKOFF * 1.2
    lasting = watching.failed(failure, 100)
    # The run itself may be well: it is left alone, for the next attempt to attach to.
    assert lasting == Decision(failure=failure)
    over = waiter(timeout=50).failed(failure, 50)
    assert (type(over.failure), over.cancel) == (f.TimedOut, True)


def test_a_rate_limit_is_honoured_within_the_limits() -> None:
    asked = waiter().failed(f.RateLimited("slow", retry_after=40), 0)
    assert asked.wait is not None
    assert asked.wait >= 40
    soon = waiter().failed(f.RateLimited("slow", retry_after=0), 0)
    assert soon.wait is not None
    assert soon.wait >= 10
    long = waiter(stall=30).failed(f.RateLimited("slow", retry_after=4000), 0)
    assert long.wait is not None
    assert long.wait <= 31


def listed(updated_at: str = "1") -> ListedAgent:
    return ListedAgent("ACTIVE", active=True, updated_at=updated_at)


def test_the_list_tells_of_life() -> None:
    watching = waiter()
    assert watching.listed(listed(), 0).wait is not None
    assert watching.listed(listed("2"), 99).wait is not None
    assert watching.left(100) == 99
    assert watching.listed(listed("2"), 198).wait is not None
    # Nothing came in time: it is asked, and then only the timeout is left.
    assert watching.passed(199).ask
    assert watching.left(200) == 800
    given_up = watching.heard("", 300)
    assert (type(given_up.failure), given_up.cancel) == (f.Stalled, True)
    assert "its last status was ACTIVE" in str(given_up.failure)


def test_a_change_in_the_list_outruns_the_question() -> None:
    watching = waiter()
    watching.listed(listed(), 0)
    assert watching.passed(100).ask
    assert watching.listed(listed("2"), 110).wait is not None
    assert watching.left(110) == 100
    assert watching.heard("", 150).wait is not None


def test_the_first_look_at_a_listed_run_is_no_sign_of_life() -> None:
    watching = waiter()
    watching.listed(listed(), 0)
    assert watching.saw(running(), 99).wait is not None
    assert watching.listed(listed(), 100).ask
    # Another look at it is, if it shows a change.
    assert watching.saw(running(updated_at="2"), 101).wait is not None


def test_nothing_to_be_heard_ends_at_the_timeout() -> None:
    watching = waiter(timeout=50)
    assert watching.left(0) == 50
    assert type(watching.passed(50).failure) is f.TimedOut


def test_trouble_counts_from_the_last_answer() -> None:
    watching = waiter()
    watching.listed(listed(), 90)
    watching.listed(listed(), 180)
    # It is quiet for so long that it would be asked now, but the vendor does not answer.
    down = f.Unavailable("down")
    assert watching.failed(down, 191).wait is not None
    assert watching.left(200) == 80
    assert watching.passed(279).failure is None
    assert watching.passed(280) == Decision(failure=down)


def test_what_no_wait_mends_ends_at_once() -> None:
    failure = f.AuthenticationFailed("no")
    assert waiter().failed(failure, 1) == Decision(failure=failure)


_events = st.lists(
    st.one_of(
        st.just(f.Unavailable("down")),
        st.floats(0, 9999).map(lambda s: f.RateLimited("slow", retry_after=s)),
        st.tuples(st.sampled_from(["CREATING", "RUNNING"]), st.sampled_from("12")),
    ),
    max_size=60,
)


@given(_events, st.floats(1, 500), st.floats(1, 500), st.floats(0.1, 60))
def test_every_wait_ends_in_time(
    events: list[f.AgentFailure | tuple[str, str]], timeout: float, stall: float, poll: float
) -> None:
    watching, now = waiter(timeout, stall, poll), 0.0
    for event in events:
        if isinstance(event, f.AgentFailure):
            decision = watching.failed(event, now)
        else:
            decision = watching.saw(running(*event), now)
            if decision.ask:
                decision = watching.heard("", now)
        if decision.wait is None:
            assert decision.failure is not None
            return
        assert decision.wait > 0
        now += decision.wait
        assert now <= timeout + 0.2
