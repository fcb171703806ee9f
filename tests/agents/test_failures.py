"""Every failure is exactly one class, and survives a trigger's event."""

from __future__ import annotations

import json

import pytest

from airflow_agent_provider.agents.failures import (
    FAILURE_CLASSES,
    AgentFailed,
    AgentFailure,
    RateLimited,
    failure_from_dict,
    failure_to_dict,
)


@pytest.mark.parametrize("name", sorted(FAILURE_CLASSES))
def test_it_survives_json(name):
    failure = FAILURE_CLASSES[name]("why", raw="the vendor's words")
    again = failure_from_dict(json.loads(json.dumps(failure_to_dict(failure))))
    assert type(again) is FAILURE_CLASSES[name]
    assert (again.reason, again.raw) == ("why", "the vendor's words")


def test_a_rate_limit_keeps_what_the_vendor_said():
    again = failure_from_dict(failure_to_dict(RateLimited("slow down", retry_after=12.5)))
    assert isinstance(again, RateLimited)
    assert again.retry_after == 12.5


def test_an_unknown_class_is_agent_failed():
    assert type(failure_from_dict({"failure_class": "New", "reason": "x"})) is AgentFailed


def test_what_no_retry_mends():
    never = {name for name, cls in FAILURE_CLASSES.items() if not cls.retryable}
    assert never == {
        "AuthenticationFailed", "QuotaExhausted", "BudgetExceeded", "PolicyViolation",
        "InvalidDefinition",
    }  # fmt: skip


def test_the_text_has_class_reason_and_the_vendor_s_words():
    assert str(AgentFailure("no", raw="503 busy")) == "AgentFailure: no (the agent said: 503 busy)"


def test_one_line_holds_the_beginning_of_the_vendor_s_words():
    assert AgentFailure("no", raw="a\n  b").line == "AgentFailure: no (the agent said: a b)"
    line = AgentFailure("no", raw="word " * 1000).line
    assert len(line) <= 400
    assert line.endswith("word…")
