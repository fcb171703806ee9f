"""Agent operators in a DAG written by hand: a plain task chooses, an agent writes, another checks.

Results of plain tasks and of agent steps are read alike: ``steps.<task id>.output``.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param, task

from airflow_agent_provider.operators.agent import AgentOperator
from airflow_agent_provider.operators.codex import CodexAgentOperator

with DAG(
    "changelog",
    schedule=None,
    tags=["agents"],
    params={
        "repository": Param("", type="string", description="Git repository; empty for a new one"),
        "audience": Param("users", enum=["users", "developers"]),
    },
) as dag:

    @task
    def headings(params: dict[str, str] | None = None) -> list[str]:
        """Return the sections that the audience reads."""
        users = ["New", "Mended"]
        return users if (params or {}).get("audience") == "users" else [*users, "Internals"]

    write = CodexAgentOperator(
        task_id="write",
        prompt=(
            "Write CHANGELOG.md for {{ params.audience }}, from the history of this repository, "
            "with the sections {{ steps.headings.output | join(', ') }}."
        ),
        output_path="CHANGELOG.md",
        repository="{{ params.repository }}",
        timeout=timedelta(minutes=20),
        retries=2,
        retry_delay=timedelta(seconds=30),
    )

    check = AgentOperator(
        task_id="check",
        agent="codex",
        prompt=(
            "Does the history of this repository bear out every line of this changelog?\n\n"
            "{{ steps.write.output }}"
        ),
        access="read_only",
        output_schema={
            "type": "object",
            "required": ["correct", "doubts"],
            "properties": {
                "correct": {"type": "boolean"},
                "doubts": {"type": "array", "items": {"type": "string"}},
            },
            "additionalProperties": False,
        },
        repository="{{ params.repository }}",
    )

    headings() >> write >> check
