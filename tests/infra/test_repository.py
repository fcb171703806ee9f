"""The demo's own clone: of whatever is given, and never a way back."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.local.repository import RepositoryUnusable, git, make_clone
from tests.e2e.live import git as run_git
from tests.e2e.live import make_repository

pytestmark = pytest.mark.integration


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a repository with one commit on ``main``."""
    bare = tmp_path / "source.git"
    make_repository(bare, {"a.txt": "a"})
    return bare


def test_the_clone_has_the_commits_and_no_remote(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "clone.git"

    assert make_clone(str(source), target) == "main"

    assert git(target, "rev-parse", "main") == git(source, "rev-parse", "main")
    assert git(target, "remote") == ""
    assert "source.git" not in (target / "config").read_text()


def test_other_branches_stay_behind(source: Path, tmp_path: Path) -> None:
    git(source, "branch", "cursor", "main")
    target = tmp_path / "clone.git"

    make_clone(str(source), target)

    assert git(target, "for-each-ref", "--format=%(refname)", "refs/heads") == "refs/heads/main"


def test_a_source_without_a_branch_gets_one(source: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    run_git(tmp_path, "clone", "-q", str(source), str(tree))
    run_git(tree, "checkout", "-q", "--detach")
    run_git(tree, "branch", "-q", "-D", "main")
    target = tmp_path / "clone.git"

    branch = make_clone(str(tree), target)

    assert git(target, "rev-parse", branch) == git(source, "rev-parse", "main")


def test_a_shallow_source_can_be_worked_on(source: Path, tmp_path: Path) -> None:
    tree, shallow = tmp_path / "tree", tmp_path / "shallow"
    run_git(tmp_path, "clone", "-q", str(source), str(tree))
    run_git(tree, "commit", "-q", "--allow-empty", "-m", "Second")
    run_git(tmp_path, "clone", "-q", "--depth=1", tree.as_uri(), str(shallow))
    target = tmp_path / "clone.git"

    make_clone(str(shallow), target)

    work = tmp_path / "work"
    run_git(tmp_path, "clone", "-q", str(target), str(work))
    run_git(work, "commit", "-q", "--allow-empty", "-m", "Third")
    run_git(work, "push", "-q", "origin", "HEAD:refs/heads/agents/x")
    assert git(target, "log", "-1", "--format=%s", "agents/x") == "Third"


def test_the_projects_own_repository_or_a_sample_is_the_default(tmp_path: Path) -> None:
    target = tmp_path / "clone.git"

    branch = make_clone("", target)

    assert git(target, "ls-tree", "--name-only", branch, "README.md") == "README.md"


def test_a_project_that_is_no_repository_gets_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.local.repository.ROOT", tmp_path)
    target = tmp_path / "clone.git"

    assert make_clone("", target) == "main"

    assert "pyproject.toml" in git(target, "ls-tree", "--name-only", "main")


def test_a_source_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(RepositoryUnusable, match="nowhere"):
        make_clone(str(tmp_path / "nowhere"), tmp_path / "clone.git")


def test_a_source_without_a_commit_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    run_git(empty, "init", "-q")

    with pytest.raises(RepositoryUnusable, match="has no commit"):
        make_clone(str(empty), tmp_path / "clone.git")
