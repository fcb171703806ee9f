"""Failure classes drive Airflow's retries."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction

from airflow_agent_provider.agents.failures import FAILURE_CLASSES, RateLimited
from airflow_agent_provider.operators.retry import FailureClassRetryPolicy


@pytest.mark.parametrize("name", sorted(FAILURE_CLASSES))
def test_the_class_decides(name):
    cls = FAILURE_CLASSES[name]
    decision = FailureClassRetryPolicy().evaluate(cls("why"), 1, 3)
    assert decision.action == (RetryAction.DEFAULT if cls.retryable else RetryAction.FAIL)


def test_a_rate_limit_waits_for_what_the_vendor_said():
    decision = FailureClassRetryPolicy().evaluate(RateLimited("slow", retry_after=90), 1, 3)
    assert decision.action == RetryAction.RETRY
    assert decision.retry_delay == timedelta(seconds=90)


def test_other_errors_are_airflow_s():
    assert FailureClassRetryPolicy().evaluate(ValueError(), 1, 3).action == RetryAction.DEFAULT


def test_it_survives_serialization():
    policy = FailureClassRetryPolicy()
    assert isinstance(FailureClassRetryPolicy.deserialize(policy.serialize()), type(policy))
