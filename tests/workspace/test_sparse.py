"""Sparse checkouts: a workspace holds some files, and its commits leave the others alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.sandbox.git_box import GitBox
from airflow_agent_provider.workspace.checkout import Checkout
from airflow_agent_provider.workspace.git import GitRunners
from airflow_agent_provider.workspace.workspace import Upstream, Workspace

from .conftest import Origin
from .test_workspace import files_of, in_tree, ours, step

Prepare = Callable[..., Workspace]
FILES = {
    "README.md": "readme\n",
    "src/app.py": "app\n",
    "src/core/core.py": "core\n",
    "docs/plan.md": "plan\n",
    "docs/deep/notes.md": "notes\n",
    "assets/big.bin": "big\n",
}


@pytest.fixture(params=["plain", pytest.param("boxed", marks=pytest.mark.integration)])
def runners(request: pytest.FixtureRequest) -> GitRunners | None:
    return GitBox if request.param == "boxed" else None


@pytest.fixture
def sparse(prepare: Prepare, origin: Origin) -> Callable[..., Workspace]:
    """Return what prepares a workspace of some files."""
    origin.commit(FILES)

    def make(*patterns: str, step_id: str = "plan", number: int = 1, **more: object) -> Workspace:
        return prepare(step_id, number, checkout=Checkout(patterns), **more)

    return make


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["src/**"], {"README.md", "src/app.py", "src/core/core.py"}),
        (["src/core"], {"README.md", "src/core/core.py"}),
        (["docs/plan.md"], {"README.md", "docs/plan.md"}),
        (["**/*.md"], {"README.md", "docs/plan.md", "docs/deep/notes.md"}),
        (["docs/*.md", "src/app.py"], {"README.md", "docs/plan.md", "src/app.py"}),
    ],
)
def test_only_what_is_asked_for_is_there(
    sparse: Callable[..., Workspace], patterns: list[str], expected: set[str]
) -> None:
    workspace = sparse(*patterns)
    assert set(files_of(workspace)) == expected
    assert in_tree(workspace, "status", "--porcelain") == ""


def test_commits_leave_the_other_files_alone(sparse: Callable[..., Workspace]) -> None:
    workspace = sparse("src/**")
    (workspace.path / "src/app.py").write_text("new\n")
    (workspace.path / "src/core/core.py").unlink()
    (workspace.path / "src/more.py").write_text("more\n")
    assert workspace.checkpoint({}, "x")
    commit = workspace.commit_step("x", {})
    assert workspace.changed_paths(commit) == ["src/app.py", "src/core/core.py", "src/more.py"]
    names = ours(workspace, "ls-tree", "-r", "--name-only", commit).split("\n")
    assert {"docs/plan.md", "docs/deep/notes.md", "assets/big.bin"} <= set(names)


def test_what_a_step_writes_elsewhere_is_work_too(
    sparse: Callable[..., Workspace], tmp_path: Path
) -> None:
    workspace = sparse("src/**")
    (workspace.path / "docs").mkdir()
    (workspace.path / "docs/new.md").write_text("new\n")
    (workspace.path / "docs/plan.md").write_text("replaced\n")
    commit = workspace.commit_step("x", {})
    assert workspace.changed_paths(commit) == ["docs/new.md", "docs/plan.md"]
    # A check leaves things, which are taken back; the work stays.
    (workspace.path / "docs/new.md").write_text("spoilt\n")
    (workspace.path / "docs/left.md").write_text("left\n")
    (workspace.path / "src/app.py").write_text("spoilt\n")
    workspace.restore()
    here = files_of(workspace)
    assert here["docs/new.md"] == "new\n"
    assert here["docs/plan.md"] == "replaced\n"
    assert here["src/app.py"] == "app\n"
    assert "docs/left.md" not in here
    assert workspace.changed_paths(workspace.commit_step("x", {})) == [
        "docs/new.md",
        "docs/plan.md",
    ]


def test_the_next_step_sees_what_the_run_has_written(
    sparse: Callable[..., Workspace], tmp_path: Path
) -> None:
    first = sparse("src/**")
    (first.path / "docs").mkdir()
    work = step(first, {"docs/new.md": "new\n", "src/app.py": "app 2\n"}, tmp_path)
    following = sparse("src/**", step_id="implement", upstreams=[work])
    here = files_of(following)
    assert here["docs/new.md"] == "new\n"
    assert here["src/app.py"] == "app 2\n"
    assert "docs/plan.md" not in here
    assert in_tree(following, "status", "--porcelain") == ""
    assert following.checkpoint({}, "x") is None
    again = step(following, {"src/b.py": "b\n"}, tmp_path)
    assert following.changed_paths(again.commit) == ["src/b.py"]
    kept = Upstream("implement", again.commit, again.bundle)
    resumed = sparse("src/**", step_id="implement", number=2, upstreams=[work], checkpoint=kept)
    assert {"docs/new.md", "src/b.py"} <= set(files_of(resumed))


def test_an_ignored_file_list_of_the_agent_hides_nothing(sparse: Callable[..., Workspace]) -> None:
    workspace = sparse("src/**")
    (workspace.path / ".git/info/sparse-checkout").write_text("/*\n!/src/\n")
    in_tree(workspace, "sparse-checkout", "disable")
    assert (workspace.path / "docs/plan.md").read_text() == "plan\n"
    (workspace.path / "docs/plan.md").write_text("changed\n")
    assert workspace.changed_paths(workspace.commit_step("x", {})) == ["docs/plan.md"]


def test_a_pattern_that_names_nothing_is_an_error(sparse: Callable[..., Workspace]) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        sparse("src/**", "scr/**", "nope")
    assert caught.value.reason.startswith("sparse: scr/**, nope names no file of repository ")


@pytest.mark.parametrize("pattern", ["src\n!/src/app.py", "src "])
def test_a_pattern_cannot_be_two(sparse: Callable[..., Workspace], pattern: str) -> None:
    with pytest.raises(InvalidDefinition, match="ends in a space or holds a line break"):
        sparse(pattern)


def test_steps_side_by_side_are_merged(sparse: Callable[..., Workspace], tmp_path: Path) -> None:
    make = partial(sparse, "src/**")
    one = step(make(step_id="one"), {"src/one.py": "1\n"}, tmp_path)
    two = step(make(step_id="two"), {"src/two.py": "2\n"}, tmp_path)
    joined = make(step_id="join", upstreams=[one, two])
    assert {"src/one.py", "src/two.py"} <= set(files_of(joined))
    assert "docs/plan.md" in ours(joined, "ls-tree", "-r", "--name-only", joined.start)
