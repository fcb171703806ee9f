"""A checkpoint is continued only by an attempt at the same work."""

from __future__ import annotations

import pytest

from airflow_agent_provider.agents.checkpoint import Checkpoint, Finished, Spent, read_checkpoint

BASE = Checkpoint(
    attempt=1, prompt_sha256="p", start="s", agent="codex", session="id", spent=Spent(cost=None)
)


def test_it_survives_the_task_state_store():
    assert read_checkpoint(BASE.model_dump(mode="json")) == BASE


@pytest.mark.parametrize("value", [None, "text", 3, {}, {"attempt": "x"}, []])
def test_what_is_no_checkpoint_is_none(value):
    assert read_checkpoint(value) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attempt": 2}, None),
        ({"attempt": 2, "clear_number": 1}, None),
        ({"prompt_sha256": "q"}, "the prompt has changed"),
        ({"start": "t"}, "the upstream work has changed"),
        ({"item_sha256": "i"}, "the mapped item has changed"),
    ],
)
def test_mismatch(change, reason):
    assert BASE.mismatch(BASE.model_copy(update=change)) == reason


def test_finished_work_is_reused_by_a_retry_but_not_after_a_clear():
    finished = BASE.model_copy(update={"finished": Finished(message="done")})
    assert finished.mismatch(BASE.model_copy(update={"attempt": 2})) is None
    cleared = BASE.model_copy(update={"attempt": 2, "clear_number": 1})
    assert finished.mismatch(cleared) == "the step had succeeded and was cleared"
