"""Failure classes drive Airflow's retries; in a running Airflow they are tried end to end."""

from __future__ import annotations

import logging
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction

from airflow_agent_provider.agents.failures import (
    FAILURE_CLASSES,
    RateLimited,
    Superseded,
    Unavailable,
)
from airflow_agent_provider.operators.codex import CodexAgentOperator
from airflow_agent_provider.operators.retry import FailureClassRetryPolicy


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
    rule = context(
        retries=3,
        retry_delay=timedelta(seconds=30),
        retry_exponential_backoff=backoff,
        max_retry_delay=timedelta(seconds=100),
    )
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


def test_the_decision_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    FailureClassRetryPolicy().evaluate(RateLimited("slow down", retry_after=90), 1, 3)
    FailureClassRetryPolicy().evaluate(FAILURE_CLASSES["QuotaExhausted"]("spent"), 1, 3)
    waits, fails = (record.getMessage() for record in caplog.records)
    assert "RateLimited" in waits
    assert "retry 1 of 3 in 90 s, as the vendor said" in waits
    assert "QuotaExhausted" in fails
    assert "no retry" in fails


def test_it_survives_serialization() -> None:
    policy = FailureClassRetryPolicy()
    assert FailureClassRetryPolicy.deserialize(policy.serialize()).on is None
