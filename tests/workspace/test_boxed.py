"""Our own git in a box: the workspace is the same, and nothing gets out of there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import AgentFailed, PolicyViolation
from airflow_agent_provider.sandbox.git_box import GitBox
from airflow_agent_provider.workspace.git import PLAIN
from airflow_agent_provider.workspace.guard import copy_file
from airflow_agent_provider.workspace.workspace import Upstream, Workspace

from .conftest import Origin

# The same tests as without a box, with the fixture below.
from .test_hostile import (  # noqa: F401
    test_a_file_that_became_a_pipe_is_a_failure_that_names_it,
    test_a_git_file_of_a_nested_repository_is_refused,
    test_a_nested_repository_is_refused_by_name,
    test_a_nested_repository_that_appears_in_the_middle,
    test_names_of_any_bytes,
    test_nothing_planted_runs,
    test_the_folder_itself_cannot_be_exchanged,
)
from .test_push import (  # noqa: F401
    test_a_conflict_pushes_nothing_and_names_the_file,
    test_a_push_moves_the_branch_on,
    test_a_siblings_push_is_joined,
)
from .test_workspace import step

pytestmark = pytest.mark.integration

Prepare = Callable[..., Workspace]
TRAILERS = {"Agents-Step": "plan"}


@pytest.fixture
def runners() -> type[GitBox]:
    return GitBox


def boxes() -> list[str]:
    """Return the boxes that this process has started."""
    children = Path(f"/proc/{os.getpid()}/task")
    found = []
    for task in children.iterdir():
        for child in (task / "children").read_text().split():
            if b"bwrap" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def test_a_whole_step_in_one_box_which_ends_with_it(
    prepare: Prepare, tmp_path: Path, origin: Origin
) -> None:
    with prepare() as workspace:
        (workspace.path / "src/app.py").write_text("new\n")
        assert workspace.checkpoint(TRAILERS, "x")
        before = boxes()
        assert len(before) == 1
        work = step(workspace, {"plan.md": "plan\n"}, tmp_path)
        assert workspace.changed_paths(work.commit) == ["plan.md", "src/app.py"]
        assert b"+new" in workspace.patch(work.commit)
        workspace.settle_setup()
        workspace.restore()
        assert boxes() == before
        workspace.push(work.commit, "agents/x")
        assert origin.at("agents/x") == work.commit
        # It is there again, for what comes after.
        assert workspace.changed_paths(work.commit)
        assert len(boxes()) == 1
    assert boxes() == []
    with prepare("implement", upstreams=[work]) as following:
        assert (following.path / "plan.md").read_text() == "plan\n"
        again = step(following, {"b.md": "b\n"}, tmp_path)
        kept = Upstream("implement", again.commit, again.bundle)
    with prepare("implement", 2, upstreams=[work], checkpoint=kept) as resumed:
        assert (resumed.path / "b.md").read_text() == "b\n"
        resumed.adopt(resumed.start)
        assert not (resumed.path / "b.md").exists()
        assert resumed.commit_step("x", TRAILERS)


def test_a_failure_in_the_middle_leaves_no_box(prepare: Prepare, tmp_path: Path) -> None:
    broken = tmp_path / "broken.bundle"
    broken.write_bytes(b"no bundle")
    for bundle in (broken, tmp_path / "missing.bundle"):
        with pytest.raises(AgentFailed, match="checkpoint of step 'plan' cannot be read"):
            prepare("implement", upstreams=[Upstream("plan", "0" * 40, bundle)])
    assert boxes() == []


def arm(workspace: Workspace, canary: Path) -> None:
    """Plant what no agent can: a filter in the settings of our own git directory."""
    config = workspace._git.git_dir / "config"
    inside = workspace.path / "ran.txt"
    program = f"sh -c 'date >> {canary}; date >> {inside}; cat'"
    workspace.close()
    with config.open("a") as file:
        file.write(f'[filter "x"]\n\tclean = "{program}"\n')
    (workspace.path / ".gitattributes").write_text("*.py filter=x\n")
    (workspace.path / "src/app.py").write_text("new\n")


def test_a_filter_that_fires_all_the_same_fires_inside(prepare: Prepare, canary: Path) -> None:
    with prepare() as workspace:
        arm(workspace, canary)
        commit = workspace.commit_step("x", TRAILERS)
        assert (workspace.path / "ran.txt").exists()
        assert not canary.exists()
        # And what it might have changed there is not taken outside, where the credentials are.
        with pytest.raises(PolicyViolation, match="config in the workspace's own git directory"):
            workspace.push(commit, "agents/x")


def test_without_the_box_it_would_fire_outside(prepare: Prepare, canary: Path) -> None:
    with prepare(runners=None) as workspace:
        assert workspace._git.runner is PLAIN
        arm(workspace, canary)
        workspace.commit_step("x", TRAILERS)
    assert canary.exists()


PLANTS: dict[str, Callable[[Path, Path], None]] = {
    "commondir": lambda git, other: (git / "commondir").write_text(f"{other}\n") and None,
    "config.worktree": lambda git, other: (git / "config.worktree").write_text("x") and None,
    "hooks": lambda git, other: (git / "hooks").mkdir(),
    "link": lambda git, other: (git / "refs/heads/x").symlink_to(other),
    "objects elsewhere": lambda git, other: (
        shutil.rmtree(git / "objects"),
        (git / "objects").symlink_to(other),
        None,
    )[2],
    "alternates": lambda git, other: (git / "objects/info/alternates").write_text("/") and None,
    "pipe": lambda git, other: os.mkfifo(git / "refs/x"),
    "no config": lambda git, other: (git / "config").unlink(),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_not_of_our_making_keeps_credentials_away(
    prepare: Prepare, tmp_path: Path, plant: str
) -> None:
    with prepare() as workspace:
        commit = workspace.commit_step("x", TRAILERS)
        workspace.push(commit, "agents/x")
        PLANTS[plant](workspace._git.git_dir, tmp_path)
        for call in (
            lambda: workspace.push(commit, "agents/y"),
            lambda: workspace.fetch_branch("main"),
        ):
            with pytest.raises(PolicyViolation, match="is not of our making"):
                call()


def test_what_git_leaves_for_us_is_taken_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    for source in ("link", "pipe"):
        with pytest.raises(OSError, match=r"symbolic|no file"):
            copy_file(tmp_path / source, tmp_path / "taken")
    with pytest.raises(OSError, match="symbolic"):
        copy_file(tmp_path / "secret", tmp_path / "link")
    copy_file(tmp_path / "secret", tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "secret"
