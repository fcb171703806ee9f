"""The outcome: the judged result of an attempt.

A step succeeds only if all agree: the agent's own account, the declared output and its schema.
What the outcome says is written once, as ``outcome.json``, and read by the mirror.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from airflow_agent_provider.agents.failures import OutputInvalid

#: Longest output, in bytes of JSON, that stands in XCom itself; a longer one is a reference.
INLINE_OUTPUT_BYTES = 4096


class Outcome(BaseModel):
    """The judged result of an attempt, as ``outcome.json`` holds it.

    :param schema_version: of this format; ``schema`` in the file.
    :param state: ``success``, ``failed`` or ``deferred``.
    :param failure: class, reason, vendor's words and seconds to wait, of a failed attempt.
    :param boxed: whether the agent's program ran in the box; None for an agent at its vendor.
    :param session: the vendor's id of the agent's conversation.
    :param answer: what a person decided: ``approved``, ``option``, ``by`` and ``comment``.
    :param commit: the step's commit if it succeeded, else its last checkpoint's.
    :param usage: tokens of this attempt alone.
    :param cost: USD of this attempt, None if unknown.
    :param artifacts: URIs by name.
    :param started: when the attempt began, UTC.
    :param ended: when it ended, UTC.
    :param prompt_sources: what the prompt was made of: name, version and digest of each file.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_version: int = Field(default=1, alias="schema")
    dag_id: str
    run_id: str
    step: str
    map_index: int
    attempt: int
    state: str
    failure: dict[str, Any] | None = None
    agent: str
    model: str | None = None
    boxed: bool | None = None
    session: str | None = None
    answer: dict[str, Any] | None = None
    commit: str | None = None
    branch: str | None = None
    output_path: str | None = None
    usage: dict[str, int] = {}
    cost: float | None = None
    artifacts: dict[str, str] = {}
    started: datetime
    ended: datetime
    prompt_sha256: str | None = None
    prompt_sources: list[dict[str, Any]] = []

    def to_json(self) -> bytes:
        """Return the file's content."""
        return self.model_dump_json(by_alias=True, indent=2).encode()


def parse_output(content: bytes, path: str, schema: Mapping[str, Any] | None) -> Any:
    """Return the output that a file holds: JSON values where there is a schema, else text.

    :param content: the file's bytes.
    :param path: its path below the workspace, for errors.
    :param schema: JSON schema of the output, if any.
    :raises OutputInvalid: if it is blank, not UTF-8, not JSON or not of the schema.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise OutputInvalid(f"the output {path} is not UTF-8 text: {error.reason}") from error
    if not text.strip():
        raise OutputInvalid(f"the output {path} is empty; the step must fill it")
    if schema is None:
        return text
    try:
        value = json.loads(text)
    except ValueError as error:
        raise OutputInvalid(f"the output {path} has a schema, but is not JSON: {error}") from error
    check_schema(value, schema, f"the output {path}")
    return value


def check_schema(value: Any, schema: Mapping[str, Any], what: str) -> None:
    """Hold ``value`` against a JSON schema.

    :param what: names the value in errors.
    :raises OutputInvalid: with the place and the rule of the first three violations.
    """
    import jsonschema  # not needed to parse a DAG

    validator = jsonschema.validators.validator_for(schema)(schema)
    errors = sorted(validator.iter_errors(value), key=lambda error: list(map(str, error.path)))
    if errors:
        lines = [f"{error.json_path}: {error.message}" for error in errors[:3]]
        raise OutputInvalid(f"{what} is not of its schema: {'; '.join(lines)}")
