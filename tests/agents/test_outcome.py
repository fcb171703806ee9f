"""The outcome and the judgement of outputs."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from airflow_agent_provider.agents.failures import OutputInvalid
from airflow_agent_provider.agents.outcome import Outcome, check_schema, parse_output

SCHEMA = {
    "type": "object",
    "required": ["tasks"],
    "properties": {"tasks": {"type": "array", "items": {"type": "string"}}},
}


def test_text_stays_text_and_json_of_a_schema_becomes_values():
    assert parse_output(b"# Plan\n", "plan.md", None) == "# Plan\n"
    assert parse_output(b'{"tasks": ["a"]}', "plan.json", SCHEMA) == {"tasks": ["a"]}


@pytest.mark.parametrize(
    ("content", "schema", "reason"),
    [
        (b"  \n", None, "the output plan.md is empty"),
        (b"\xff\xfe", None, "the output plan.md is not UTF-8 text"),
        (b"tasks: []", SCHEMA, "the output plan.md has a schema, but is not JSON"),
        (b"{}", SCHEMA, "$: 'tasks' is a required property"),
        (b'{"tasks": [1, "x", 2]}', SCHEMA, "$.tasks[0]: 1 is not of type 'string'"),
    ],
)
def test_invalid_output(content, schema, reason):
    with pytest.raises(OutputInvalid) as caught:
        parse_output(content, "plan.md", schema)
    assert reason in caught.value.reason


def test_only_the_first_three_violations_are_told():
    with pytest.raises(OutputInvalid) as caught:
        check_schema({"tasks": [1, 2, 3, 4]}, SCHEMA, "the answer")
    assert caught.value.reason.count("is not of type") == 3


def test_unknown_cost_is_null_not_zero():
    now = datetime(2026, 1, 2, tzinfo=UTC)
    outcome = Outcome(
        schema=1, dag_id="d", run_id="r", step="s", map_index=-1, attempt=1, state="success",
        agent="codex", started=now, ended=now,
    )  # fmt: skip
    values = json.loads(outcome.to_json())
    assert values["cost"] is None
    assert values["schema"] == 1
    assert values["started"] == "2026-01-02T00:00:00Z"
