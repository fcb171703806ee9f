"""The errors of models' APIs, in the words of their vendors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.agents.model_errors import failure_of_answer, failure_of_words

QUOTA = '{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'
CREDIT = '{"error": {"message": "Your credit balance is too low to access the Anthropic API"}}'
OPENAI_CONTEXT = '{"error": {"code": "context_length_exceeded", "message": "too long"}}'
CLAUDE_CONTEXT = '{"error": {"message": "prompt is too long: 210000 tokens > 200000 maximum"}}'
GEMINI_CONTEXT = "The input token count (1200000) exceeds the maximum number of tokens allowed"


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (401, "Incorrect API key", f.AuthenticationFailed),
        (403, "No access", f.AuthenticationFailed),
        (402, "Payment required", f.QuotaExhausted),
        (429, QUOTA, f.QuotaExhausted),
        (400, CREDIT, f.QuotaExhausted),
        (429, "Slow down", f.RateLimited),
        (400, OPENAI_CONTEXT, f.ContextExhausted),
        (400, CLAUDE_CONTEXT, f.ContextExhausted),
        (400, GEMINI_CONTEXT, f.ContextExhausted),
        (413, CLAUDE_CONTEXT, f.ContextExhausted),
        (400, '{"error": {"code": "content_filter"}}', f.PolicyViolation),
        (400, '{"error": {"code": "model_not_found"}}', f.AgentFailed),
        (404, "no such model", f.AgentFailed),
        (301, "moved", f.AgentFailed),
        (408, "", f.Unavailable),
        (409, "", f.Unavailable),
        (500, "Oops", f.Unavailable),
        # A server in trouble may say anything.
        (500, OPENAI_CONTEXT, f.Unavailable),
        (503, '{"error": {"code": "server_is_overloaded"}}', f.Unavailable),
        (529, "Overloaded", f.Unavailable),
        (None, "ConnectError: [Errno 111] Connection refused", f.Unavailable),
        (None, "the answer broke off", f.Unavailable),
        (None, f"data: {OPENAI_CONTEXT}", f.ContextExhausted),
        (None, 'data: {"error": {"code": "rate_limit_exceeded"}}', f.RateLimited),
        (None, "", f.Unavailable),
    ],
)
def test_every_answer_is_one_class(status: int | None, words: str, expected: type) -> None:
    failure = failure_of_answer(status, words)
    assert type(failure) is expected
    assert failure.raw == words


def test_how_long_to_wait_is_the_apis_word() -> None:
    failure = failure_of_answer(429, "Slow down", 7.5)
    assert isinstance(failure, f.RateLimited)
    assert failure.retry_after == 7.5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("401 Incorrect API key", f.AuthenticationFailed),
        ("429 Slow down", f.RateLimited),
        (f"429 {QUOTA}", f.QuotaExhausted),
        ("[API Error: 503 Service Unavailable]", f.Unavailable),
        ("request failed with status code 503", f.Unavailable),
        ('{"statusCode":403,"message":"no"}', f.AuthenticationFailed),
        ("HTTP status: 500", f.Unavailable),
        ("Rate limit exceeded. Try again later.", f.RateLimited),
        ("Incorrect API key provided", f.AuthenticationFailed),
        ("Connection error.", f.Unavailable),
        ("fetch failed: connect ECONNREFUSED 127.0.0.1:1", f.Unavailable),
        ("Model stream ended without a finish reason.", f.Unavailable),
        ("Request timeout after 60s.", f.Unavailable),
        ("This model's maximum context length is 128000 tokens", f.ContextExhausted),
        ("no such tool: 404 pages", f.AgentFailed),
        ("I wrote 500 lines", f.AgentFailed),
        ("", f.AgentFailed),
    ],
)
def test_an_agents_own_words(words: str, expected: type) -> None:
    assert type(failure_of_words(words)) is expected


@given(st.one_of(st.none(), st.integers(100, 600)), st.text())
def test_no_answer_is_too_strange(status: int | None, words: str) -> None:
    assert isinstance(failure_of_answer(status, words), f.AgentFailure)
    assert isinstance(failure_of_words(words), f.AgentFailure)
