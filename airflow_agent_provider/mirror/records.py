"""What the mirror says of a run, a step and an attempt, from what Airflow and the attempt tell."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from airflow_agent_provider.agents.failures import Interrupted
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.hooks.artifacts import ArtifactStore

log = logging.getLogger(__name__)

#: The attempt's own account, written before the operator returns or raises.
OUTCOME = "outcome.json"
#: Larger is not ours: what the operator writes has bounds.
_OUTCOME_BYTES = 4_000_000
_LIVE = frozenset({"running", "deferred", "awaiting_input", "restarting"})


def run_values(
    dag_id: str,
    run_id: str,
    *,
    state: str,
    conf: Mapping[str, Any] | None,
    times: Mapping[str, str | None],
    clear_number: int | None = None,
) -> dict[str, Any]:
    """Return what the mirror says of a run.

    :param state: Airflow's state of the run.
    :param conf: what it was triggered with.
    :param times: ``time`` (when it was due), ``queued``, ``started`` and ``ended``, ISO in UTC.
    :param clear_number: how often it was cleared; None where that is not known.
    """
    conf = conf or {}
    return {
        "state": state,
        **times,
        "repository": _text(conf.get("repository")),
        "ref": _text(conf.get("ref")),
        "branch": StepKey(dag_id, run_id, "").run_branch,
        "clear_number": clear_number,
    }


def attempt_values(
    state: str,
    times: Mapping[str, str | None],
    outcome: Mapping[str, Any] | None,
    *,
    settled: bool = False,
) -> dict[str, Any]:
    """Return what the mirror says of an attempt.

    :param state: Airflow's state of the try; it wins over the attempt's own account.
    :param times: ``started`` and ``ended``, ISO in UTC.
    :param outcome: the attempt's own account, None if there is none.
    :param settled: whether Airflow has decided, so that no account can follow any more.
    """
    outcome = outcome or {}
    usage = outcome.get("usage")
    values: dict[str, Any] = {
        # A try that is retried has failed; only its step is up for retry.
        "state": "failed" if state == "up_for_retry" else state,
        **times,
        "agent": _text(outcome.get("agent")),
        "model": _text(outcome.get("model")),
        "session_id": _session(outcome.get("session")),
        "answer": dict(outcome["answer"]) if outcome.get("answer") else None,
        "commit": _text(outcome.get("commit")),
        "branch": _text(outcome.get("branch")),
        "output_path": _text(outcome.get("output_path")),
        "usage": dict(usage) if isinstance(usage, Mapping) and usage else None,
        "cost": _cost(outcome.get("cost")),
        "artifacts": dict(outcome["artifacts"]) if outcome.get("artifacts") else None,
        "prompt_sha256": _text(outcome.get("prompt_sha256")),
    }
    if values["state"] == "failed":
        values |= _failure(outcome, settled)
    return values


def step_values(state: str, try_number: int, attempt: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the mirror says of a step.

    :param state: Airflow's state of the step.
    :param try_number: the try that the step is at.
    :param attempt: what the mirror says of the attempt that led to this state; empty for none.
    """
    own = {name: value for name, value in attempt.items() if name not in ("raw", "session_id")}
    return {**own, "state": state, "try_number": try_number}


def is_live(state: str) -> bool:
    """Return whether a try in this state has begun and not ended."""
    return state in _LIVE


def read_outcome(store: ArtifactStore, key: AttemptKey) -> dict[str, Any] | None:
    """Return an attempt's own account; None if it left none, or none that can be read.

    :raises Exception: as the store does, if it does not answer.
    """
    try:
        content = store.get(f"{key.prefix}/{OUTCOME}")
    except FileNotFoundError:
        return None
    try:
        outcome = json.loads(content) if len(content) <= _OUTCOME_BYTES else None
    except ValueError:
        outcome = None
    if not isinstance(outcome, dict):
        log.warning("%s/%s cannot be read; it counts as missing", key.prefix, OUTCOME)
        return None
    return outcome


def _failure(outcome: Mapping[str, Any], settled: bool) -> dict[str, Any]:
    failure = outcome.get("failure")
    if isinstance(failure, Mapping):
        return {
            "failure_class": _text(failure.get("failure_class")),
            "reason": _text(failure.get("reason")),
            "raw": _text(failure.get("raw")),
        }
    if not settled:
        return {}
    told = (
        f"it had noted {outcome.get('state')!r} in its outcome"
        if outcome
        else "it left no outcome: its process or supervisor died, or a user ended it"
    )
    return {"failure_class": Interrupted.__name__, "reason": f"Airflow recorded failed; {told}"}


def _text(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None


def _session(value: Any) -> str | None:
    return _text(value.get("id")) if isinstance(value, Mapping) else _text(value)


def _cost(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else None
