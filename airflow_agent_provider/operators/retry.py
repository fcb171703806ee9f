"""Failure classes drive Airflow's retries."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import RetryDecision, RetryPolicy

from airflow_agent_provider.agents.failures import AgentFailure, RateLimited

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
        name = exception.failure_class
        if not exception.retryable:
            return _told(RetryDecision.fail(name), name, "no retry: none can help")
        if self.on is not None and name not in self.on:
            return _told(RetryDecision.fail(name), name, "no retry: the step's rule leaves it out")
        if try_number > max_tries:
            return _told(RetryDecision.default(), name, f"no retry: {max_tries} are used up")
        if isinstance(exception, RateLimited) and exception.retry_after is not None:
            wait, why = timedelta(seconds=exception.retry_after), "as the vendor said"
        elif (rule := _delay(context, try_number)) is not None:
            wait, why = rule, "by the step's rule"
        else:
            return RetryDecision.default()
        told = f"retry {try_number} of {max_tries} in {wait.total_seconds():g} s, {why}"
        return _told(RetryDecision.retry(wait, f"{name}: {why}"), name, told)

    def serialize(self) -> dict[str, Any]:
        """Return the arguments that make the policy again."""
        return {"on": None if self.on is None else list(self.on)}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> FailureClassRetryPolicy:
        """Return the policy that :meth:`serialize` described."""
        return cls(data.get("on"))


def _told(decision: RetryDecision, name: str, what: str) -> RetryDecision:
    log.info("%s: %s", name, what)
    return decision


def _delay(context: Context | None, try_number: int) -> timedelta | None:
    """Return the delay by the step's rule, so that the log can name it: as Airflow computes it."""
    task = None if context is None else context["ti"].task
    if task is None:
        return None
    # Try numbers grow over clears, and no power of a delay may leave what a date can hold.
    longest = _seconds(task.max_retry_delay or timedelta(days=1))
    factor = float(task.retry_exponential_backoff or 1) ** min(try_number - 1, 64)
    return timedelta(seconds=min(_seconds(task.retry_delay) * factor, longest))


def _seconds(time: timedelta | float) -> float:
    return time.total_seconds() if isinstance(time, timedelta) else time
