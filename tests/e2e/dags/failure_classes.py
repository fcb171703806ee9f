"""One step per failure class; ``rehearsal.yaml`` says what makes it fail."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_agent_provider.operators.codex import CodexAgentOperator

#: What the steps need besides what the scripted model does.
STEPS: dict[str, dict[str, Any]] = {
    "AuthenticationFailed": {},
    "QuotaExhausted": {},
    "BudgetExceeded": {"budget_tokens": 10},
    "PolicyViolation": {"deny_paths": [".github/**"]},
    "InvalidDefinition": {"prompt": "Go on with {{ steps.nowhere.output }}"},
    "RateLimited": {},
    "RateLimited.told": {},
    "Unavailable": {},
    "Stalled": {"stall": timedelta(seconds=6)},
    "TimedOut": {"timeout": timedelta(seconds=20)},
    "Interrupted.agent": {},
    "Interrupted.task": {},
    "ContextExhausted": {},
    "OutputInvalid": {"output_path": "report.md"},
    "VerificationFailed": {"verify": ["test -e proof.txt"]},
    "AgentFailed": {},
}

with DAG("failure-classes", schedule=None) as dag:
    for name, arguments in STEPS.items():
        CodexAgentOperator(
            **{
                "task_id": name,
                "prompt": "Do the work.",
                # Codex itself shall try nothing again, nor be told what to mend.
                "options": {"retries": 0, "patience": 5},
                "repair": 0,
                "retries": 3,
                "retry_delay": timedelta(seconds=8),
                **arguments,
            }
        )
