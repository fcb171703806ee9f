"""How long a hosted run may stay silent, and how long to wait until the next look at it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from airflow_agent_provider.agents.failures import (
    AgentFailure,
    RateLimited,
    Stalled,
    TimedOut,
    Unavailable,
)
from airflow_agent_provider.hooks.agent import HostedRun

#: Seconds between two looks while the vendor does not answer, at most.
MAX_BACKOFF = 60.0
#: Waits are never shorter, so that a limit reached by a hair makes no busy loop.
MIN_WAIT = 0.05


class Verdict(StrEnum):
    """Why a run is given up."""

    STALLED = "stalled"
    TIMED_OUT = "timed out"


class RunWatch:
    """Judges by what was seen of a run, and when, whether to give it up. Pure: it reads no clock.

    :param timeout: seconds that the run may take from ``now`` on.
    :param stall: seconds that it may go without any change.
    :param now: the monotonic clock's seconds.
    """

    def __init__(self, *, timeout: float, stall: float, now: float) -> None:
        self._deadline = now + timeout
        self._stall = stall
        self._changed = now
        self._mark: tuple[Any, ...] | None = None

    def observe(self, status: str, updated_at: str, now: float, sign: str = "") -> Verdict | None:
        """Take in what a look at the run showed; return whether to give it up.

        :param status: the vendor's word for where the run stands.
        :param updated_at: the vendor's time of the last change.
        :param now: the monotonic clock's seconds.
        :param sign: a further mark that changes while the agent works.
        """
        mark = (status, updated_at, sign)
        if mark != self._mark:
            self._mark, self._changed = mark, now
        return self.judge(now)

    def judge(self, now: float) -> Verdict | None:
        """Return whether to give the run up by now, without a new look at it."""
        if now >= self._deadline:
            return Verdict.TIMED_OUT
        return Verdict.STALLED if now - self._changed >= self._stall else None

    def left(self, now: float) -> float:
        """Return the seconds until the next verdict, if nothing changes."""
        return max(0.0, min(self._deadline, self._changed + self._stall) - now)


@dataclass(frozen=True)
class Decision:
    """What to do next.

    :param wait: seconds until the next look; None to look no more.
    :param failure: why the wait ends without success.
    :param cancel: whether the vendor's run is to be ended first.
    :param ask: whether to ask for a sign of life before the run counts as stalled.
    """

    wait: float | None = None
    failure: AgentFailure | None = None
    cancel: bool = False
    ask: bool = False


class Waiter:
    """Decides after each look at a run what to do next; the loops around it only obey.

    :param title: the agent's name, for the reasons of failures.
    :param run_id: the vendor's id of the run.
    :param timeout: seconds that the run may take from ``now`` on.
    :param stall: seconds that it may go without any change.
    :param poll: seconds between two looks.
    :param now: the monotonic clock's seconds.
    """

    def __init__(
        self, *, title: str, run_id: str, timeout: float, stall: float, poll: float, now: float
    ) -> None:
        self._name = f"{title}'s run {run_id}"
        self._timeout = timeout
        self._stall = stall
        self._poll = poll
        self._watch = RunWatch(timeout=timeout, stall=stall, now=now)
        self._last: HostedRun | None = None
        self._failures = 0
        self._sign = ""

    @property
    def sign(self) -> str:
        """The sign of life that was heard last."""
        return self._sign

    def first_wait(self) -> float:
        """Return the seconds until the first look: many triggers that start at once spread out."""
        return random.uniform(0.0, min(self._poll, 5.0))

    def saw(self, run: HostedRun, now: float) -> Decision:
        """Decide after a look that showed ``run``."""
        self._failures, self._last = 0, run
        if run.ended:
            return Decision(failure=run.failure)
        verdict = self._watch.observe(run.status, run.updated_at, now, self._sign)
        if verdict is Verdict.STALLED:
            return Decision(ask=True)
        return self._go_on_or(verdict, now)

    def heard(self, sign: str, now: float) -> Decision:
        """Decide after a sign of life was asked for.

        :param sign: the mark that the hook returned; one that did not change is no sign of life.
        """
        self._sign = sign
        last = self._last
        verdict = (
            self._watch.observe(last.status, last.updated_at, now, sign)
            if last
            else self._watch.judge(now)
        )
        return self._go_on_or(verdict, now)

    def failed(self, failure: AgentFailure, now: float) -> Decision:
        """Decide after a look that failed: trouble on the way is waited out, the rest is not."""
        if not isinstance(failure, Unavailable | RateLimited):
            return Decision(failure=failure)
        verdict = self._watch.judge(now)
        if verdict is Verdict.STALLED:
            # Nothing is known of the run itself, so it is left alone and a retry attaches to it.
            return Decision(failure=failure)
        if verdict is not None:
            return self._go_on_or(verdict, now)
        self._failures += 1
        wait = min(MAX_BACKOFF, self._poll * 2.0 ** min(self._failures, 10))
        if isinstance(failure, RateLimited) and failure.retry_after is not None:
            wait = max(self._poll, failure.retry_after)
        return Decision(wait=self._bounded(wait * random.uniform(1.0, 1.2), now))

    def _go_on_or(self, verdict: Verdict | None, now: float) -> Decision:
        status = f"its last status was {self._last.status}" if self._last else "it was never seen"
        if verdict is Verdict.TIMED_OUT:
            reason = f"{self._name} was not done within {self._timeout:.0f} s; {status}"
            return Decision(failure=TimedOut(reason), cancel=True)
        if verdict is Verdict.STALLED:
            reason = f"{self._name} gave no sign of life for {self._stall:.0f} s; {status}"
            return Decision(failure=Stalled(reason), cancel=True)
        return Decision(wait=self._bounded(self._poll * random.uniform(0.8, 1.2), now))

    def _bounded(self, wait: float, now: float) -> float:
        return max(MIN_WAIT, min(wait, self._watch.left(now) + MIN_WAIT))
