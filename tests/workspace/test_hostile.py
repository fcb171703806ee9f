"""What an agent may leave behind, and that nothing of it runs in, or misleads, our own git."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import AgentFailed, PolicyViolation
from airflow_agent_provider.workspace.workspace import Workspace

from .conftest import Origin

pytestmark = pytest.mark.integration

Prepare = Callable[..., Workspace]
TRAILERS = {"Agents-Step": "plan"}


class Agent:
    """Does to a workspace what a hostile agent does, by git as it is on the worker."""

    def __init__(self, workspace: Workspace, canary: Path) -> None:
        self.tree = workspace.path
        self.canary = canary
        self.program = canary.with_name("planted.sh")
        self.program.write_text(f"#!/bin/sh\necho $0 $* >> {canary}\ncat\n")
        self.program.chmod(0o755)

    def git(self, *args: str, cwd: Path | None = None) -> None:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.canary.parent),
            "GIT_AUTHOR_NAME": "x",
            "GIT_AUTHOR_EMAIL": "x",
            "GIT_COMMITTER_NAME": "x",
            "GIT_COMMITTER_EMAIL": "x",
        }
        subprocess.run(
            ["git", *args], cwd=cwd or self.tree, env=env, check=True, capture_output=True
        )

    def configure(self, **settings: str) -> None:
        for name, value in settings.items():
            self.git("config", name.replace("__", "."), value)

    def hooks(self) -> None:
        folder = self.tree / ".git/hooks"
        folder.mkdir()
        for name in ("pre-commit", "post-commit", "reference-transaction", "post-checkout",
                     "post-index-change", "pre-push"):  # fmt: skip
            shutil.copy(self.program, folder / name)

    def settings(self) -> None:
        program = str(self.program)
        self.configure(
            core__hooksPath=str(self.program.parent),
            core__fsmonitor=program,
            core__alternateRefsCommand=program,
            diff__external=program,
            gpg__program=program,
            commit__gpgSign="true",
            core__editor=program,
            core__pager=program,
            core__sshCommand=program,
            credential__helper=f"!{program}",
        )

    def filters(self) -> None:
        program = str(self.program)
        self.configure(
            filter__x__clean=program,
            filter__x__smudge=program,
            filter__x__required="true",
            diff__x__textconv=program,
            diff__x__command=program,
            merge__x__driver=program,
        )
        (self.tree / ".gitattributes").write_text("* filter=x diff=x merge=x\n")

    def include(self) -> None:
        config = self.tree / "config.txt"
        config.write_text(f"[core]\n\tfsmonitor = {self.program}\n")
        self.configure(include__path=str(config))

    def common_dir(self) -> None:
        other = self.canary.parent / "other"
        self.git("init", "-q", str(other))
        self.git("config", "core.fsmonitor", str(self.program), cwd=other)
        (self.tree / ".git/commondir").write_text(f"{other}/.git\n")

    def another_git(self) -> None:
        shutil.rmtree(self.tree / ".git")
        self.git("init", "-q")
        self.settings()
        self.filters()

    def git_file(self) -> None:
        self.another_git()
        moved = self.canary.parent / "moved"
        (self.tree / ".git").rename(moved)
        (self.tree / ".git").write_text(f"gitdir: {moved}\n")

    def git_link(self) -> None:
        self.another_git()
        moved = self.canary.parent / "moved"
        (self.tree / ".git").rename(moved)
        (self.tree / ".git").symlink_to(moved)

    def no_git(self) -> None:
        shutil.rmtree(self.tree / ".git")

    def bare_repository(self) -> None:
        bare = self.tree / "fixtures/bare"
        self.git("init", "-q", "--bare", str(bare))
        (bare / "hooks").mkdir(exist_ok=True)
        (bare / "config").write_text(f"[core]\n\tbare = true\n\tfsmonitor = {self.program}\n")


@pytest.mark.parametrize(
    "plant",
    [
        Agent.hooks,
        Agent.settings,
        Agent.filters,
        Agent.include,
        Agent.common_dir,
        Agent.another_git,
        Agent.git_file,
        Agent.git_link,
        Agent.no_git,
        Agent.bare_repository,
    ],
    ids=lambda plant: plant.__name__,
)
def test_nothing_planted_runs(
    prepare: Prepare, origin: Origin, canary: Path, tmp_path: Path, plant: Callable[[Agent], None]
) -> None:
    workspace = prepare()
    plant(Agent(workspace, canary))
    (workspace.path / "src/app.py").write_text("changed\n")
    checkpoint = workspace.checkpoint(TRAILERS, "x")
    (workspace.path / "src/app.py").write_text("changed again\n")
    commit = workspace.commit_step("x", TRAILERS)
    assert checkpoint is not None
    assert "src/app.py" in workspace.changed_paths(commit)
    assert b"changed again" in workspace.patch(commit)
    assert workspace.bundle(commit, tmp_path / "x.bundle")
    workspace.push(commit, "agents/x")
    workspace.adopt(commit)
    prepare(number=2)
    assert not canary.exists(), canary.read_text()


def test_the_canary_would_sing(prepare: Prepare, canary: Path) -> None:
    """The plants above do run where git believes the tree's own repository."""
    workspace = prepare()
    agent = Agent(workspace, canary)
    agent.filters()
    (workspace.path / "new.txt").write_text("x\n")
    agent.git("add", "--all")
    assert canary.exists()


def nest(workspace: Workspace, canary: Path, where: str, commit: bool) -> Agent:
    agent = Agent(workspace, canary)
    nested = workspace.path / where
    nested.mkdir(parents=True, exist_ok=True)
    agent.git("init", "-q", cwd=nested)
    if commit:
        (nested / "inner.txt").write_text("x\n")
        agent.git("add", "--all", cwd=nested)
        agent.git("commit", "-q", "-m", "x", cwd=nested)
    for name in ("fsmonitor", "sshCommand"):
        agent.git("config", f"core.{name}", str(agent.program), cwd=nested)
    agent.git("config", "filter.x.clean", str(agent.program), cwd=nested)
    (nested / ".gitattributes").write_text("* filter=x\n")
    return agent


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("where", ["vendor/tool", "src", "größe [1]"])
def test_a_nested_repository_is_refused_by_name(
    prepare: Prepare, canary: Path, where: str, commit: bool
) -> None:
    workspace = prepare()
    nest(workspace, canary, where, commit)
    for call in (workspace.checkpoint, workspace.commit_step):
        with pytest.raises(PolicyViolation) as caught:
            call("x", {}) if call == workspace.commit_step else call({}, "x")
        assert f"in {where}/" in caught.value.reason
    assert not canary.exists()


def test_a_git_file_of_a_nested_repository_is_refused(prepare: Prepare, canary: Path) -> None:
    workspace = prepare()
    nest(workspace, canary, "vendor/tool", True)
    nested = workspace.path / "vendor/tool/.git"
    nested.rename(canary.with_name("moved"))
    nested.write_text(f"gitdir: {canary.with_name('moved')}\n")
    with pytest.raises(PolicyViolation, match="in vendor/tool/"):
        workspace.checkpoint(TRAILERS, "x")
    assert not canary.exists()


def test_clones_in_ignored_folders_are_no_matter(prepare: Prepare, canary: Path) -> None:
    workspace = prepare()
    (workspace.path / ".gitignore").write_text("node_modules/\n")
    nest(workspace, canary, "node_modules/tool", True)
    commit = workspace.commit_step("x", TRAILERS)
    assert workspace.changed_paths(commit) == [".gitignore"]
    assert not canary.exists()


def test_a_nested_repository_that_appears_in_the_middle(
    prepare: Prepare, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent may make it after we looked; then git add finds it, and must not enter it."""
    workspace = prepare()
    stage = workspace._stage
    nest(workspace, canary, "late", True)
    monkeypatch.setattr(stage, "_refuse_nested", lambda: None)
    for _ in range(3):
        (workspace.path / "late/inner.txt").write_text("touched\n")
        with pytest.raises(PolicyViolation, match="in late/"):
            workspace.checkpoint(TRAILERS, "x")
    shutil.rmtree(workspace.path / "late")
    nest(workspace, canary, "unborn", False)
    with pytest.raises(PolicyViolation, match="in unborn/"):
        workspace.checkpoint(TRAILERS, "x")
    assert not canary.exists()


def test_the_folder_itself_cannot_be_exchanged(prepare: Prepare, tmp_path: Path) -> None:
    workspace = prepare()
    workspace.path.rename(workspace.path.with_name("away"))
    workspace.path.symlink_to(tmp_path)
    with pytest.raises(PolicyViolation, match="was replaced"):
        workspace.checkpoint(TRAILERS, "x")
    # And the next attempt starts clean.
    again = prepare(number=2)
    assert not again.path.is_symlink()
    assert tmp_path.exists()


def test_links_are_stored_as_links(prepare: Prepare) -> None:
    workspace = prepare()
    (workspace.path / "passwd").symlink_to("/etc/passwd")
    (workspace.path / "etc").symlink_to("/etc")
    commit = workspace.commit_step("x", TRAILERS)
    assert workspace.changed_paths(commit) == ["etc", "passwd"]
    assert b"root:" not in workspace.patch(commit)


def test_pipes_and_sockets_do_not_stop_us(prepare: Prepare) -> None:
    workspace = prepare()
    os.mkfifo(workspace.path / "pipe")
    (workspace.path / "x").write_text("x")
    commit = workspace.commit_step("x", TRAILERS)
    assert workspace.changed_paths(commit) == ["x"]


def test_a_file_that_became_a_pipe_is_a_failure_that_names_it(prepare: Prepare) -> None:
    workspace = prepare()
    (workspace.path / "README.md").unlink()
    os.mkfifo(workspace.path / "README.md")
    with pytest.raises(AgentFailed, match=r"README\.md"):
        workspace.commit_step("x", TRAILERS)


def test_names_of_any_bytes(prepare: Prepare) -> None:
    workspace = prepare()
    names = ["two\nlines", "-rf", ":(top)x", 'quo"te', os.fsdecode(b"\xff\xfe")]
    for name in names:
        (workspace.path / name).write_text("x")
    commit = workspace.commit_step("x", TRAILERS)
    assert sorted(workspace.changed_paths(commit)) == sorted(names)


def test_an_attribute_cannot_hide_work(prepare: Prepare) -> None:
    workspace = prepare()
    (workspace.path / ".gitattributes").write_text("* -diff export-ignore\nsrc/** binary\n")
    (workspace.path / "src/app.py").write_text("new\n")
    commit = workspace.commit_step("x", TRAILERS)
    assert workspace.changed_paths(commit) == [".gitattributes", "src/app.py"]
    assert b"+new" in workspace.patch(commit)


def test_the_agents_index_flags_hide_nothing(prepare: Prepare, canary: Path) -> None:
    workspace = prepare()
    agent = Agent(workspace, canary)
    agent.git("update-index", "--assume-unchanged", "src/app.py")
    agent.git("update-index", "--skip-worktree", "README.md")
    (workspace.path / ".git/info").mkdir(exist_ok=True)
    (workspace.path / ".git/info/exclude").write_text("*\n")
    for name in ("src/app.py", "README.md", "new.txt"):
        (workspace.path / name).write_text("new\n")
    commit = workspace.commit_step("x", TRAILERS)
    assert workspace.changed_paths(commit) == ["README.md", "new.txt", "src/app.py"]
