"""Failure classes drive Airflow's retries."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import RetryDecision, RetryPolicy

from airflow_agent_provider.agents.failures import AgentFailure, RateLimited, Superseded

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)


class FailureClassRetryPolicy(RetryPolicy):
    """No retry where none can help; after a rate limit when the vendor said; else the step's rule.

    Airflow never asks it for a task whose process was killed: such a task gets Airflow's plain
    delay. It cannot exceed the step's ``retries``.

    :param on: names of the failure classes that are retried; None for all that a retry can help.
    """

    def __init__(self, on: Sequence[str] | None = None) -> None:
        self.on = None if on is None else tuple(on)

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,
        context: Context | None = None,
    ) -> RetryDecision:
        """Return what follows from ``exception``; see :class:`airflow.sdk.RetryPolicy`."""
        if not isinstance(exception, AgentFailure):
            return RetryDecision.default()
        decision, told = self._decide(exception, try_number, max_tries, context)
        # The one line that says what went wrong and what follows.
        log.error("%s; %s", exception.line, told)
        return decision

    def _decide(
        self, failure: AgentFailure, try_number: int, max_tries: int, context: Context | None
    ) -> tuple[RetryDecision, str]:
        name = failure.failure_class
        if isinstance(failure, Superseded):
            return RetryDecision.default(), "the newer attempt goes on"
        if not failure.retryable:
            return RetryDecision.fail(name), "no retry: none can help"
        if self.on is not None and name not in self.on:
            return RetryDecision.fail(name), "no retry: the step's rule leaves this class out"
        if try_number > max_tries:
            return RetryDecision.default(), f"no retry: {_used_up(max_tries)}"
        wait, why = _rule_delay(context, try_number), "by the step's rule"
        if isinstance(failure, RateLimited) and failure.retry_after is not None:
            wait, why = timedelta(seconds=failure.retry_after), "as the vendor said"
        if wait is None:
            return RetryDecision.default(), f"retry {try_number} of {max_tries} {why}"
        told = f"retry {try_number} of {max_tries} in {wait.total_seconds():g} s, {why}"
        return RetryDecision.retry(wait, f"{name}: {why}"), told

    def serialize(self) -> dict[str, Any]:
        """Return the arguments that make the policy again."""
        return {"on": None if self.on is None else list(self.on)}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> FailureClassRetryPolicy:
        """Return the policy that :meth:`serialize` described."""
        return cls(data.get("on"))


def _used_up(retries: int) -> str:
    return f"all {retries} are used up" if retries else "the step has none"


def _rule_delay(context: Context | None, try_number: int) -> timedelta | None:
    """Return the delay after a try by the step's rule; None if the step is not known.

    :param context: Airflow's context of the task.
    :param try_number: the try that failed.
    """
    task = None if context is None else context["ti"].task
    if task is None:
        return None
    # Try numbers grow over clears, and no power of a delay may leave what a date can hold.
    longest = _seconds(task.max_retry_delay or timedelta(days=1))
    factor = float(task.retry_exponential_backoff or 1) ** min(try_number - 1, 64)
    return timedelta(seconds=min(_seconds(task.retry_delay) * factor, longest))


def plain_delay(context: Context, try_number: int) -> str:
    """Say which delay Airflow itself takes after a try whose process was killed.

    :param context: Airflow's context of the task.
    :param try_number: the try that was killed.
    """
    wait = _rule_delay(context, try_number)
    if wait is None:
        return "after Airflow's plain delay"
    # Where the delay grows, Airflow adds up to as much again, lest all retries come at once.
    grows = float(context["ti"].task.retry_exponential_backoff or 1) != 1
    return f"after Airflow's plain delay of {wait.total_seconds():g} s{' or more' if grows else ''}"


def _seconds(time: timedelta | float) -> float:
    return time.total_seconds() if isinstance(time, timedelta) else time
