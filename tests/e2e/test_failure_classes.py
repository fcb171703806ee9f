"""Every failure class in a running Airflow: the state, the delay, and why in one line."""

from __future__ import annotations

from airflow_agent_provider.agents.failures import FAILURE_CLASSES
from tests.e2e.failure_classes import KILLED, Told, provoke, shown
from tests.e2e.live import Live

#: The delay of the steps' own rule, and what the vendor said.
RULE, VENDOR = 8.0, 11.0
#: What the line of each step says between its class and what follows.
WORDS = {
    "AuthenticationFailed": "refused the API key of the connection 'codex_default'",
    "QuotaExhausted": "the quota of the vendor's account is used up",
    "BudgetExceeded": "the run's budget of 10 tokens is spent",
    "PolicyViolation": "do not let it change .github/workflows/ci.yaml",
    "InvalidDefinition": "has no attribute 'nowhere'",
    "RateLimited": "the rate limit of the model's API is reached",
    "RateLimited.told": "the rate limit of the model's API is reached",
    "Unavailable": "HTTP status 503",
    "Stalled": "no sign of life for 6 s",
    "TimedOut": "timeout of 20 s",
    "Interrupted.agent": "the Codex program ended in the middle of the turn",
    KILLED: "attempt 1 ended without a word, its process was killed",
    "ContextExhausted": "no longer fits the model's context",
    "OutputInvalid": "output report.md is missing",
    "VerificationFailed": "the check `test -e proof.txt` failed with exit code 1",
    "AgentFailed": "Out of luck.",
}


def test_every_failure_class_is_told_in_airflow(live_airflow: Live) -> None:
    rows = provoke(live_airflow)
    assert {told.step for told in rows} == set(WORDS)
    assert {told.failure_class for told in rows} == set(FAILURE_CLASSES)
    wrong = [fault for told in rows for fault in faults(told)]
    assert not wrong, f"{wrong}\n{shown(rows)}"


def faults(told: Told) -> list[str]:
    """Return what is wrong with what Airflow tells of a step."""
    retried = FAILURE_CLASSES[told.failure_class].retryable
    delay = None if not retried else VENDOR if told.step == "RateLimited.told" else RULE
    follows = "no retry: none can help"
    if delay is not None:
        by = "as the vendor said" if delay == VENDOR else "by the step's rule"
        follows = f"retry 1 of 3 in {delay:g} s, {by}"
    if told.step == KILLED:
        follows = f"retry 1 of 3, after Airflow's plain delay of {RULE:g} s"
    waited = told.waited is None if delay is None else (told.waited or 0.0) >= delay
    holds = {
        "one line": told.lines == 1,
        "its words": WORDS[told.step] in told.line and told.line.endswith(f"; {follows}"),
        "its delay": told.delay == delay,
        "the wait": waited,
        "the state": told.state == ("up_for_retry" if retried else "failed"),
        # What makes a step fail is over by its second attempt.
        "the end": told.ended == ("success" if retried else "failed"),
        "the mirror": told.mirrored == told.failure_class,
    }
    return [f"{told.step}: {what}" for what, held in holds.items() if not held]
