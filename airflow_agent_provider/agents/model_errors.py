"""The errors of models' APIs as failures: by HTTP status, by the vendor's code, by its words.

Agents wrap what their model's API said into texts of their own, or hide it behind retries; the
API's own answer, where somebody saw it, tells the class.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    AuthenticationFailed,
    ContextExhausted,
    PolicyViolation,
    QuotaExhausted,
    RateLimited,
    Unavailable,
)

#: The status in an agent's text: at its beginning, or where the text says that it is one.
_STATUS = re.compile(
    r"^\W*(?P<first>[45]\d\d)\b|status(?:[ _]?code)?\W{1,3}(?P<named>[45]\d\d)\b", re.IGNORECASE
)


def failure_of_answer(
    status: int | None, words: str, retry_after: float | None = None
) -> AgentFailure:
    """Return the failure that a bad answer of a model's API is.

    :param status: the answer's HTTP status; None where there was none, or an error within a
        stream that had begun well.
    :param words: what the API said, or why there was no answer.
    :param retry_after: seconds that it asks to wait, if it does.
    """
    if status in (401, 403):
        return AuthenticationFailed("the model's API refused the key", raw=words)
    if status == 402:
        return _quota(words)
    if status is None or status < 500:
        make = _by_words(words, _CERTAIN)
        if make is not None:
            return make(words)
    if status == 429:
        return _rate_limited(words, retry_after)
    if status is None:
        make = _by_words(words, _PASSING)
        return make(words) if make else Unavailable("the model's API does not answer", raw=words)
    if status in (408, 409) or status >= 500:
        return Unavailable(f"the model's API answered with HTTP status {status}", raw=words)
    return AgentFailed(f"the model's API refused the request with HTTP status {status}", raw=words)


def failure_of_words(words: str) -> AgentFailure:
    """Return the failure that an agent's own text tells, in which the API's answer may stand."""
    if match := _STATUS.search(words):
        return failure_of_answer(int(match["first"] or match["named"]), words)
    make = _by_words(words, _CERTAIN + _PASSING)
    return make(words) if make else AgentFailed("the agent failed", raw=words)


def _by_words(
    words: str, rules: tuple[tuple[str, Callable[[str], AgentFailure]], ...]
) -> Callable[[str], AgentFailure] | None:
    return next((make for told, make in rules if re.search(told, words, re.IGNORECASE)), None)


def _quota(words: str) -> AgentFailure:
    return QuotaExhausted("the quota of the vendor's account is used up", raw=words)


def _context(words: str) -> AgentFailure:
    return ContextExhausted("the session no longer fits the model's context", raw=words)


def _policy(words: str) -> AgentFailure:
    return PolicyViolation("the vendor refused the task by its usage policy", raw=words)


def _rate_limited(words: str, retry_after: float | None = None) -> AgentFailure:
    reason = "the rate limit of the model's API is reached"
    return RateLimited(reason, raw=words, retry_after=retry_after)


def _unauthorized(words: str) -> AgentFailure:
    return AuthenticationFailed("the model's API refused the key", raw=words)


def _unavailable(words: str) -> AgentFailure:
    return Unavailable("the model's API cannot serve the request now", raw=words)


#: Codes and words that tell the class whatever the status says. OpenAI's, Anthropic's, Google's.
_CERTAIN: tuple[tuple[str, Callable[[str], AgentFailure]], ...] = (
    (r"insufficient_quota|exceeded your current quota|billing_hard_limit|credit balance", _quota),
    (r"context_length_exceeded|maximum context length|prompt is too long", _context),
    (r"context window|exceeds the maximum number of (input )?tokens", _context),
    (r"content_filter|content_policy|usage polic(y|ies)", _policy),
)
#: Words of errors that have no status.
_PASSING: tuple[tuple[str, Callable[[str], AgentFailure]], ...] = (
    (r"rate.?limit|too many requests|resource_exhausted", _rate_limited),
    (r"invalid_api_key|incorrect api key|invalid x-api-key|unauthori[sz]ed", _unauthorized),
    (r"overloaded|server_error|service unavailable|bad gateway", _unavailable),
    (r"E(CONN\w+|PIPE|AI_AGAIN|NOTFOUND|TIMEDOUT)\b|fetch failed|socket hang up", _unavailable),
    (r"(connection|network) (error|refused|reset|closed)|(un)?able to connect", _unavailable),
    (r"stream (ended|disconnected|closed|aborted)|timed? ?out|\bterminated\b", _unavailable),
)
