"""Failure classes drive Airflow's retries; in a running Airflow they are tried end to end."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction

from airflow_agent_provider.agents.failures import (
    FAILURE_CLASSES,
    AgentFailed,
    AgentFailure,
    AuthenticationFailed,
    RateLimited,
    Superseded,
    Unavailable,
)
from airflow_agent_provider.operators.codex import CodexAgentOperator
from airflow_agent_provider.operators.retry import FailureClassRetryPolicy, plain_delay

RULE = {
    "retries": 3,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": 2,
    "max_retry_delay": timedelta(seconds=100),
}


def context(**arguments: Any) -> Any:
    """Return the part of Airflow's context that the policy reads."""
    task = CodexAgentOperator(task_id="work", prompt="x", **arguments)
    return {"ti": SimpleNamespace(task=task)}


@pytest.mark.parametrize("name", sorted(FAILURE_CLASSES))
def test_the_class_decides(name: str) -> None:
    cls = FAILURE_CLASSES[name]
    decision = FailureClassRetryPolicy().evaluate(cls("why"), 1, 3)
    assert decision.action == (RetryAction.DEFAULT if cls.retryable else RetryAction.FAIL)


def test_a_rate_limit_waits_for_what_the_vendor_said() -> None:
    decision = FailureClassRetryPolicy().evaluate(RateLimited("slow", retry_after=90), 1, 3)
    assert decision.action == RetryAction.RETRY
    assert decision.retry_delay == timedelta(seconds=90)


@pytest.mark.parametrize(
    ("number", "backoff", "seconds"),
    [(1, 2, 30), (2, 2, 60), (3, 2, 100), (3, 0, 30), (900, 2, 100), (1, 0, 30)],
)
def test_the_steps_rule_is_named_in_seconds(number: int, backoff: int, seconds: float) -> None:
    rule = context(**{**RULE, "retry_exponential_backoff": backoff})
    decision = FailureClassRetryPolicy().evaluate(Unavailable("down"), number, 1000, rule)
    assert decision.retry_delay == timedelta(seconds=seconds)
    limited = FailureClassRetryPolicy().evaluate(RateLimited("slow"), number, 1000, rule)
    assert limited.retry_delay == timedelta(seconds=seconds)


def test_only_the_classes_that_the_step_names() -> None:
    policy = FailureClassRetryPolicy(["Unavailable", "Interrupted"])
    for failure, action in (
        (Unavailable("x"), RetryAction.DEFAULT),
        # A narrower exception counts as its class.
        (Superseded("x"), RetryAction.DEFAULT),
        (RateLimited("x", retry_after=1), RetryAction.FAIL),
    ):
        assert policy.evaluate(failure, 1, 3).action == action
        again = FailureClassRetryPolicy.deserialize(policy.serialize())
        assert again.evaluate(failure, 1, 3).action == action


def test_when_the_retries_are_used_up_airflow_decides() -> None:
    decision = FailureClassRetryPolicy().evaluate(RateLimited("x", retry_after=9), 4, 3)
    assert decision.action == RetryAction.DEFAULT


def test_other_errors_are_airflow_s() -> None:
    assert FailureClassRetryPolicy().evaluate(ValueError(), 1, 3).action == RetryAction.DEFAULT


def test_it_survives_serialization() -> None:
    policy = FailureClassRetryPolicy()
    assert FailureClassRetryPolicy.deserialize(policy.serialize()).on is None


@pytest.mark.parametrize(
    ("failure", "try_number", "told"),
    [
        (
            RateLimited("the rate limit is reached", retry_after=90),
            1,
            "RateLimited: the rate limit is reached; retry 1 of 3 in 90 s, as the vendor said",
        ),
        (RateLimited("slow"), 2, "RateLimited: slow; retry 2 of 3 in 60 s, by the step's rule"),
        (
            Unavailable("it is down", raw="HTTP 503\n<html>"),
            3,
            "Unavailable: it is down (the agent said: HTTP 503 <html>); retry 3 of 3 in 100 s, by "
            "the step's rule",
        ),
        (Unavailable("it is down"), 4, "Unavailable: it is down; no retry: all 3 are used up"),
        (
            AuthenticationFailed("the key is wrong"),
            1,
            "AuthenticationFailed: the key is wrong; no retry: none can help",
        ),
        (
            AgentFailed("it failed"),
            1,
            "AgentFailed: it failed; no retry: the step's rule leaves this class out",
        ),
        (
            Superseded("attempt 2 has taken over"),
            1,
            "Interrupted: attempt 2 has taken over; the newer attempt goes on",
        ),
    ],
)
def test_one_line_of_the_log_says_what_went_wrong_and_what_follows(
    failure: AgentFailure, try_number: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = FailureClassRetryPolicy(["RateLimited", "Unavailable"])
    policy.evaluate(failure, try_number, 3, context(**RULE))
    assert [record.getMessage() for record in caplog.records] == [told]


def test_a_step_without_retries_says_so(caplog: pytest.LogCaptureFixture) -> None:
    FailureClassRetryPolicy().evaluate(Unavailable("down"), 1, 0, context(**RULE))
    assert caplog.messages == ["Unavailable: down; no retry: the step has none"]


def test_a_killed_task_waits_as_long_as_airflow_says() -> None:
    assert plain_delay(context(**{**RULE, "retry_exponential_backoff": 0}), 3) == (
        "after Airflow's plain delay of 30 s"
    )
    assert plain_delay(context(**RULE), 2) == "after Airflow's plain delay of 60 s or more"
