"""An artifact store in memory, as far as the mirror uses one."""

from __future__ import annotations

import json
from typing import Any

from airflow_agent_provider.agents.identity import AttemptKey


class MemoryStore:
    """Holds outcomes by their key."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.reads = 0

    def get(self, key: str) -> bytes:
        self.reads += 1
        try:
            return self.content[key]
        except KeyError:
            raise FileNotFoundError(key) from None

    def write_outcome(self, key: AttemptKey, **values: Any) -> None:
        self.content[f"{key.prefix}/outcome.json"] = json.dumps(outcome(key, **values)).encode()


def outcome(key: AttemptKey, **values: Any) -> dict[str, Any]:
    """Return an attempt's own account, as the operator writes it."""
    return {
        "schema": 1,
        "dag_id": key.step.dag_id,
        "run_id": key.step.run_id,
        "step": key.step.step_id,
        "map_index": key.step.map_index,
        "attempt": key.number,
        "state": "success",
        "failure": None,
        "agent": "codex",
        "model": "gpt-5",
        "session": f"session-{key.number}",
        "commit": f"{key.number:040x}",
        "branch": key.step.run_branch,
        "output_path": "docs/plan.md",
        "usage": {"input_tokens": 100 * key.number, "output_tokens": 7, "total_tokens": 107},
        "cost": None,
        "artifacts": {"prompt": f"file:///artifacts/{key.prefix}/prompt.md"},
        "started": "2026-11-23T01:00:00.000000Z",
        "ended": "2026-11-23T01:01:00.000000Z",
        "prompt_sha256": "ab" * 32,
        **values,
    }
