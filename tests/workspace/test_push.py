from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import (
    AgentFailure,
    AuthenticationFailed,
    InvalidDefinition,
    PolicyViolation,
)
from airflow_agent_provider.workspace.merge import MergeConflict
from airflow_agent_provider.workspace.repository import Repository
from airflow_agent_provider.workspace.workspace import Workspace
from tests.git_server import GitServer

from .conftest import Origin

pytestmark = pytest.mark.integration

Prepare = Callable[..., Workspace]
BRANCH = "agents/demo/run-1"


def work(workspace: Workspace, name: str, text: str = "work\n") -> str:
    (workspace.path / name).write_text(text)
    return workspace.commit_step(f"Write {name}", {"Agents-Step": name})


def test_a_push_makes_the_branch_and_does_so_once(prepare: Prepare, origin: Origin) -> None:
    workspace = prepare()
    commit = work(workspace, "a")
    assert workspace.push(commit, BRANCH) == commit
    assert workspace.push(commit, BRANCH) == commit
    assert origin.at(BRANCH) == commit
    assert origin.at("main") == workspace.base


def test_a_push_moves_the_branch_on(prepare: Prepare, origin: Origin) -> None:
    workspace = prepare()
    assert workspace.push(workspace.base, BRANCH) == workspace.base
    commit = work(workspace, "a")
    assert workspace.push(commit, BRANCH) == commit
    # An older commit is there already.
    assert workspace.push(workspace.base, BRANCH) == commit
    assert origin.at(BRANCH) == commit


def test_a_branch_that_is_ahead_stays(prepare: Prepare, origin: Origin) -> None:
    workspace = prepare()
    commit = work(workspace, "a")
    workspace.push(commit, BRANCH)
    origin.git("fetch", "-q", "origin")
    origin.git("checkout", "-q", "--detach", f"origin/{BRANCH}")
    ahead = origin.commit({"b": "b"}, branch=BRANCH)
    assert workspace.push(commit, BRANCH) == ahead
    assert origin.at(BRANCH) == ahead


def test_a_siblings_push_is_joined(prepare: Prepare, origin: Origin) -> None:
    one, two = prepare("one"), prepare("two")
    first, second = work(one, "a"), work(two, "b")
    assert one.push(first, BRANCH) == first
    joined = two.push(second, BRANCH)
    assert origin.at(BRANCH) == joined
    assert origin.git("rev-parse", f"{joined}^1", f"{joined}^2", cwd=origin.path).split() == [
        first,
        second,
    ]
    assert two.push(second, BRANCH) == joined
    assert one.push(first, BRANCH) == joined


def test_siblings_may_push_at_once(prepare: Prepare, origin: Origin) -> None:
    steps = [prepare(f"step-{n}") for n in range(4)]
    commits = [work(step, f"file-{n}") for n, step in enumerate(steps)]
    failures: list[BaseException] = []

    def push(step: Workspace, commit: str) -> None:
        try:
            step.push(commit, BRANCH)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=push, args=pair) for pair in zip(steps, commits, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    names = origin.git("ls-tree", "--name-only", BRANCH, cwd=origin.path).split()
    assert [name for name in names if name.startswith("file-")] == [f"file-{n}" for n in range(4)]


def test_a_conflict_pushes_nothing_and_names_the_file(prepare: Prepare, origin: Origin) -> None:
    one, two = prepare("one"), prepare("two")
    first = work(one, "same", "1\n")
    one.push(first, BRANCH)
    with pytest.raises(MergeConflict) as caught:
        two.push(work(two, "same", "2\n"), BRANCH)
    assert caught.value.files == ("same",)
    assert caught.value.sides == (f"branch {BRANCH!r}", "step 'two'")
    assert origin.at(BRANCH) == first


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        ("echo 'not on fridays' >&2; exit 1", PolicyViolation),
        ("echo 'ERROR: Permission to o/r.git denied to ada.' >&2; exit 1", PolicyViolation),
    ],
)
def test_a_rejected_push_keeps_the_servers_words(
    prepare: Prepare, origin: Origin, hook: str, expected: type[AgentFailure]
) -> None:
    script = origin.path / "hooks/pre-receive"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!/bin/sh\n{hook}\n")
    script.chmod(0o755)
    workspace = prepare()
    with pytest.raises(expected) as caught:
        workspace.push(work(workspace, "a"), BRANCH)
    assert hook.split("'")[1] in str(caught.value)
    assert "rejects the push" in caught.value.reason


def test_a_checked_out_branch_is_not_pushed_to(
    prepare: Prepare, origin: Origin, root: Path
) -> None:
    origin.git("config", "core.bare", "false", cwd=origin.path)
    workspace = prepare()
    with pytest.raises(PolicyViolation):
        workspace.push(work(workspace, "a"), "main")


def test_a_repository_that_is_gone(prepare: Prepare, origin: Origin) -> None:
    workspace = prepare()
    commit = work(workspace, "a")
    origin.path.rename(origin.path.with_name("moved"))
    with pytest.raises(InvalidDefinition, match="does not exist"):
        workspace.push(commit, BRANCH)


def test_missing_rights_name_the_connection(
    prepare: Prepare, origin: Origin, git_server: GitServer
) -> None:
    workspace = prepare()
    commit = work(workspace, "a")
    git_server.serve(origin.path, writable=False)
    workspace.repository = Repository(git_server.url("origin.git"), conn_id="git_team")
    with pytest.raises(AuthenticationFailed, match="the connection 'git_team'"):
        workspace.push(commit, BRANCH)
    git_server.serve(origin.path, writable=True)
    assert workspace.push(commit, BRANCH) == commit
    assert origin.at(BRANCH) == commit


def test_a_step_that_is_done_anew_replaces_its_commit_and_what_came_after(
    prepare: Prepare, origin: Origin
) -> None:
    plan, implement, review = prepare("plan"), prepare("implement"), prepare("review")
    plan.push(old := work(plan, "plan"), BRANCH)
    after = review.commit_step("Review", {"Agents-Step": "review"})
    review.push(after, BRANCH)
    implement.push(beside := work(implement, "implement"), BRANCH)
    again = prepare("plan")
    new = work(again, "plan", "better\n")
    pushed = again.push(new, BRANCH, replaces={"plan", "review"})
    history = origin.git("rev-list", "--no-merges", pushed, cwd=origin.path).split()
    assert {new, beside} <= set(history)
    assert not {old, after} & set(history)
    assert origin.git("show", f"{pushed}:plan", cwd=origin.path) == "better"
    # Once more is harmless.
    assert again.push(new, BRANCH, replaces={"plan", "review"}) == pushed


def test_what_a_person_committed_is_never_dropped(prepare: Prepare, origin: Origin) -> None:
    workspace = prepare("plan")
    workspace.push(work(workspace, "plan"), BRANCH)
    origin.git("fetch", "-q", "origin")
    origin.git("checkout", "-q", "--detach", f"origin/{BRANCH}")
    person = origin.commit({"notes": "mine"}, branch=BRANCH)
    again = prepare("plan")
    new = again.commit_step("Plan again", {"Agents-Step": "plan"})
    pushed = again.push(new, BRANCH, replaces={"plan"})
    assert person in origin.git("rev-list", pushed, cwd=origin.path).split()
