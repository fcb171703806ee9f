"""Names of runs, steps and attempts are safe for paths, keys and git, and never collide."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_agent_provider.agents.identity import AttemptKey, StepKey, slug

IDS = st.from_regex(r"\A[A-Za-z0-9_.-]{1,60}\Z")


@given(st.text(max_size=200), st.text(max_size=200))
def test_slugs_are_safe_and_differ(one, other):
    assert set(slug(one)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert 8 <= len(slug(one)) <= 70
    assert (slug(one) == slug(other)) == (one == other)


@pytest.mark.parametrize("dag_id", ["plain", "a.b", "x..y", ".hidden", "ends.lock", "ends.", "-d"])
@pytest.mark.parametrize("step_id", ["plan", "group.task", "a..b"])
def test_git_accepts_the_refs(dag_id, step_id):
    step = StepKey(dag_id, "manual__2026-01-02T03:04:05.6+00:00", step_id)
    for ref in (f"refs/heads/{step.run_branch}", AttemptKey(step, 3).ref):
        subprocess.run(["git", "check-ref-format", ref], check=True)


@given(IDS, IDS, st.text(min_size=1, max_size=100))
def test_refs_of_any_id_have_no_git_trap(dag_id, step_id, run_id):
    ref = AttemptKey(StepKey(dag_id, run_id, step_id, 2), 1).ref
    assert ".." not in ref
    for part in ref.split("/"):
        assert part
        assert not part.startswith(".")
        assert not part.endswith((".lock", "."))


def test_prefixes():
    attempt = AttemptKey(StepKey("d", "r", "s", 4), 2)
    assert attempt.prefix == f"d/{slug('r')}/s/4/2"
    assert attempt.step.run_prefix == f"d/{slug('r')}"
