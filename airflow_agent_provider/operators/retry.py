"""Failure classes drive Airflow's retries."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import RetryDecision, RetryPolicy

from airflow_agent_provider.agents.failures import AgentFailure, RateLimited

if TYPE_CHECKING:
    from airflow.sdk import Context


class FailureClassRetryPolicy(RetryPolicy):
    """No retry where none can help; after a rate limit when the vendor said; else the step's rule.

    Airflow never asks it for a task whose process was killed: such a task gets Airflow's plain
    delay. It cannot exceed the step's ``retries``.
    """

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
        if not exception.retryable:
            return RetryDecision.fail(exception.failure_class)
        if isinstance(exception, RateLimited) and exception.retry_after is not None:
            wait = timedelta(seconds=exception.retry_after)
            return RetryDecision.retry(wait, f"{exception.failure_class}: the vendor said when")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return nothing: the policy has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> FailureClassRetryPolicy:
        """Return the policy."""
        return cls()
