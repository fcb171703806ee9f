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
from airflow_agent_provider.hooks.agent import HostedRun, ListedAgent

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
        self.deadline = now + timeout
        self._stall = stall
        self._changed = now
        self._marks: dict[str, Any] = {}

    def observe(
        self, status: str, updated_at: str, now: float, sign: str = "", listed: str = ""
    ) -> Verdict | None:
        """Take in what is known of the run; return whether to give it up.

        :param status: the vendor's word for where the run stands; empty if it was not looked at.
        :param updated_at: the vendor's time of the last change.
        :param now: the monotonic clock's seconds.
        :param sign: a further mark that changes while the agent works.
        :param listed: what the vendor's list shows of the run.
        """
        run = (status, updated_at) if status else ""
        for name, mark in {"run": run, "sign": sign, "listed": listed}.items():
            if mark and self._is_change(name, mark):
                self._changed = now
        return self.judge(now)

    def _is_change(self, name: str, mark: Any) -> bool:
        before, known = self._marks.get(name), bool(self._marks)
        self._marks[name] = mark
        if before is None:
            # The first look at a run that the list shows says nothing new of it, nor the reverse.
            return name == "sign" or not known
        return bool(before != mark)

    def judge(self, now: float) -> Verdict | None:
        """Return whether to give the run up by now, without a new look at it."""
        if now >= self.deadline:
            return Verdict.TIMED_OUT
        return Verdict.STALLED if now - self._changed >= self._stall else None

    def left(self, now: float) -> float:
        """Return the seconds until the next verdict, if nothing changes."""
        return max(0.0, min(self.deadline, self._changed + self._stall) - now)


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

    A loop that looks by itself waits as long as the decisions say. One that is told of the run by
    others waits for :meth:`left` seconds and then asks :meth:`passed`.

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
        self._listed: ListedAgent | None = None
        self._sign = ""
        self._asked = False
        # The trouble on the way to the vendor, and when something was last known of the run.
        self._trouble: AgentFailure | None = None
        self._failures = 0
        self._answered = now

    @property
    def sign(self) -> str:
        """The sign of life that was heard last."""
        return self._sign

    def left(self, now: float) -> float:
        """Return the seconds until something must be decided, if nothing is heard of the run."""
        if self._trouble is not None:
            return self._patience(now)
        if self._asked:
            return max(0.0, self._watch.deadline - now)
        return self._watch.left(now)

    def saw(self, run: HostedRun, now: float) -> Decision:
        """Decide after a look that showed ``run``."""
        self._last = run
        if run.ended:
            return Decision(failure=run.failure)
        return self._ask_or_go_on(now)

    def listed(self, agent: ListedAgent, now: float) -> Decision:
        """Decide after the vendor's list showed ``agent``."""
        self._listed = agent
        return self._ask_or_go_on(now)

    def heard(self, sign: str, now: float) -> Decision:
        """Decide after a sign of life was asked for.

        :param sign: the mark that the hook returned; one that did not change is no sign of life.
        """
        self._sign, self._asked = sign, False
        return self._go_on_or(self._observe(now), now)

    def passed(self, now: float) -> Decision:
        """Decide after nothing was heard of the run for :meth:`left` seconds."""
        if self._trouble is not None:
            return self._wait_out(self._trouble, now)
        verdict = self._watch.judge(now)
        if verdict is Verdict.STALLED:
            return self._ask()
        return self._go_on_or(verdict, now)

    def failed(self, failure: AgentFailure, now: float) -> Decision:
        """Decide after a look that failed: trouble on the way is waited out, the rest is not."""
        if not isinstance(failure, Unavailable | RateLimited):
            return Decision(failure=failure)
        self._failures += 1
        self._trouble = failure
        return self._wait_out(failure, now)

    def _wait_out(self, failure: AgentFailure, now: float) -> Decision:
        if self._watch.judge(now) is Verdict.TIMED_OUT:
            return self._go_on_or(Verdict.TIMED_OUT, now)
        if self._patience(now) <= 0:
            # Nothing is known of the run itself, so it is left alone and a retry attaches to it.
            return Decision(failure=failure)
        wait = min(MAX_BACKOFF, self._poll * 2.0 ** min(self._failures, 10))
        if isinstance(failure, RateLimited) and failure.retry_after is not None:
            wait = max(self._poll, failure.retry_after)
        wait *= random.uniform(1.0, 1.2)
        return Decision(wait=max(MIN_WAIT, min(wait, self._patience(now) + MIN_WAIT)))

    def _patience(self, now: float) -> float:
        """Return the seconds that trouble on the way may still last."""
        return max(0.0, min(self._watch.deadline, self._answered + self._stall) - now)

    def _ask_or_go_on(self, now: float) -> Decision:
        verdict = self._observe(now)
        if verdict is Verdict.STALLED:
            return self._ask()
        return self._go_on_or(verdict, now)

    def _ask(self) -> Decision:
        self._asked = True
        return Decision(ask=True)

    def _observe(self, now: float) -> Verdict | None:
        self._failures, self._trouble, self._answered = 0, None, now
        last, listed = self._last, self._listed
        verdict = self._watch.observe(
            last.status if last else "",
            last.updated_at if last else "",
            now,
            self._sign,
            f"{listed.status} {listed.updated_at}" if listed else "",
        )
        self._asked = self._asked and verdict is Verdict.STALLED
        return verdict

    def _go_on_or(self, verdict: Verdict | None, now: float) -> Decision:
        known = self._last or self._listed
        status = f"its last status was {known.status}" if known else "it was never seen"
        if verdict is Verdict.TIMED_OUT:
            reason = f"{self._name} was not done within {self._timeout:.0f} s; {status}"
            return Decision(failure=TimedOut(reason), cancel=True)
        if verdict is Verdict.STALLED:
            reason = f"{self._name} gave no sign of life for {self._stall:.0f} s; {status}"
            return Decision(failure=Stalled(reason), cancel=True)
        wait = self._poll * random.uniform(0.8, 1.2)
        return Decision(wait=max(MIN_WAIT, min(wait, self._watch.left(now) + MIN_WAIT)))
