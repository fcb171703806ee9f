"""The files of submodules: to read, from where they may come from, and never an agent's doing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    InvalidDefinition,
    PolicyViolation,
)
from airflow_agent_provider.hooks.repository import submodule_source
from airflow_agent_provider.sandbox.git_box import GitBox
from airflow_agent_provider.workspace.allowed import AllowList
from airflow_agent_provider.workspace.checkout import Checkout
from airflow_agent_provider.workspace.git import GitRunners
from airflow_agent_provider.workspace.repository import Repository
from airflow_agent_provider.workspace.submodules import _absolute
from airflow_agent_provider.workspace.workspace import Workspace
from tests.git_server import GitServer

from .conftest import Origin
from .test_workspace import files_of, ours, step

Prepare = Callable[..., Workspace]
#: What this file's user lets git do; our own git does not ask for it.
LOCAL = ("-c", "protocol.file.allow=always")


@pytest.fixture(params=["plain", pytest.param("boxed", marks=pytest.mark.integration)])
def runners(request: pytest.FixtureRequest) -> GitRunners | None:
    return GitBox if request.param == "boxed" else None


@pytest.fixture
def library(tmp_path: Path, origin: Origin) -> Origin:
    """Return the repository of a submodule, in ``libs/one`` of the origin."""
    made = Origin(tmp_path / "library")
    made.commit({"lib.py": "lib\n", "sub/deep.py": "deep\n", ".gitignore": "*.pyc\n"})
    origin.git(*LOCAL, "submodule", "add", str(made.path), "libs/one")
    origin.commit({"x": "x\n"})
    return made


@pytest.fixture
def filled(prepare: Prepare, tmp_path: Path) -> Callable[..., Workspace]:
    """Return what prepares a workspace with the files of submodules."""

    def make(
        *, allowed: str = f"{tmp_path}/*", sparse: tuple[str, ...] = (), **more: object
    ) -> Workspace:
        source = submodule_source(AllowList(allowed.split()))
        return prepare(checkout=Checkout(sparse, source), **more)

    return make


def modules(origin: Origin, url: str, path: str = "libs/one") -> None:
    """Let the origin's ``.gitmodules`` say another URL."""
    origin.commit({".gitmodules": f'[submodule "one"]\n\tpath = {path}\n\turl = {url}\n'})


def test_the_files_are_there_and_are_no_part_of_the_work(
    filled: Callable[..., Workspace], library: Origin, tmp_path: Path
) -> None:
    workspace = filled()
    assert (workspace.path / "libs/one/lib.py").read_text() == "lib\n"
    assert (workspace.path / "libs/one/sub/deep.py").read_text() == "deep\n"
    assert not (workspace.path / "libs/one/.git").exists()
    assert workspace.checkpoint({}, "x") is None
    (workspace.path / "x").write_text("y\n")
    (workspace.path / "libs/one/lib.pyc").write_text("ignored there\n")
    commit = workspace.commit_step("x", {})
    assert workspace.changed_paths(commit) == ["x"]
    assert workspace.submodule_changes(commit) == []
    assert ours(workspace, "rev-parse", f"{commit}:libs/one") == library.at("main")
    work = step(workspace, {"y": "y\n"}, tmp_path)
    following = filled(step_id="implement", upstreams=[work])
    assert (following.path / "libs/one/lib.py").read_text() == "lib\n"


def test_the_agents_repository_is_clean(filled: Callable[..., Workspace], library: Origin) -> None:
    workspace = filled()
    done = subprocess.run(
        ["git", "status", "--porcelain"],
        cwd=workspace.path, env=library.env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == ""


def edit(tree: Path) -> None:
    (tree / "libs/one/lib.py").write_text("changed\n")


def add(tree: Path) -> None:
    (tree / "libs/one/new.py").write_text("new\n")


def delete(tree: Path) -> None:
    (tree / "libs/one/sub/deep.py").unlink()


def remove(tree: Path) -> None:
    (tree / "libs/one").rename(tree / "moved")


def empty(tree: Path) -> None:
    (tree / "libs/one").rename(tree.parent / "home" / "gone")
    (tree / "libs/one").mkdir()


def link(tree: Path) -> None:
    (tree / "libs/one").rename(tree.parent / "home" / "gone")
    (tree / "libs/one").symlink_to(tree / "src")


def link_above(tree: Path) -> None:
    (tree / "libs").rename(tree.parent / "home" / "gone")
    (tree / "libs").symlink_to(tree.parent / "home" / "gone")


def unignore(tree: Path) -> None:
    # The tree's own .gitignore wins over what we exclude.
    (tree / ".gitignore").write_text("!libs/one/\n!libs/one/**\n")
    edit(tree)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (edit, ["libs/one/lib.py"]),
        (add, ["libs/one/new.py"]),
        (delete, ["libs/one/sub/deep.py"]),
        (remove, ["libs/one"]),
        (empty, ["libs/one/.gitignore", "libs/one/lib.py", "libs/one/sub/deep.py"]),
        (link, ["libs/one"]),
        (link_above, ["libs/one"]),
        (unignore, ["libs/one/lib.py"]),
    ],
)
def test_a_change_of_them_is_named(
    filled: Callable[..., Workspace], library: Origin, change: Callable[[Path], None], names: list
) -> None:
    workspace = filled()
    change(workspace.path)
    workspace.checkpoint({}, "x")
    commit = workspace.commit_step("x", {})
    assert workspace.submodule_changes(commit) == names
    assert ours(workspace, "rev-parse", f"{commit}:libs/one") == library.at("main")
    assert not [path for path in workspace.changed_paths(commit) if path.startswith("libs/one/")]


def test_what_checks_and_setup_leave_in_them_is_taken_back(
    filled: Callable[..., Workspace], library: Origin
) -> None:
    workspace = filled()
    before = files_of(workspace)
    edit(workspace.path)
    add(workspace.path)
    workspace.settle_setup()
    # What setup made stays, and is nobody's work.
    assert files_of(workspace) == {**before, "libs/one/new.py": "new\n"}
    commit = workspace.commit_step("x", {})
    assert workspace.submodule_changes(commit) == []
    edit(workspace.path)
    delete(workspace.path)
    (workspace.path / "libs/one/left.py").write_text("left\n")
    workspace.restore()
    assert files_of(workspace) == {**before, "libs/one/new.py": "new\n"}
    assert workspace.submodule_changes(workspace.commit_step("x", {})) == []


def test_a_gitmodules_that_an_agent_writes_says_nothing(
    filled: Callable[..., Workspace], library: Origin, tmp_path: Path, canary: Path
) -> None:
    workspace = filled()
    url = f"ext::sh -c 'touch {canary}'"
    text = f'[submodule "one"]\n\tpath = libs/one\n\turl = {url}\n\tupdate = !touch {canary}\n'
    work = step(workspace, {".gitmodules": text}, tmp_path)
    assert workspace.changed_paths(work.commit) == [".gitmodules"]
    following = filled(step_id="implement", upstreams=[work])
    assert (following.path / "libs/one/lib.py").read_text() == "lib\n"
    assert not canary.exists()


@pytest.mark.parametrize("allowed", ["*", "https://*", "{tmp}/*"])
@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c 'touch {canary}' %G",
        "/etc/../{tmp}/library/origin.git",
        "../../../../../../../../../../etc",
        "--upload-pack=touch {canary}",
        "git://127.0.0.1:1/x?y",
    ],
)
def test_where_submodules_may_not_come_from(
    filled: Callable[..., Workspace],
    library: Origin,
    origin: Origin,
    tmp_path: Path,
    canary: Path,
    url: str,
    allowed: str,
) -> None:
    modules(origin, url.format(canary=canary, tmp=tmp_path))
    with pytest.raises(AgentFailure) as caught:
        filled(allowed=allowed.format(tmp=tmp_path))
    assert isinstance(caught.value, PolicyViolation | InvalidDefinition)
    assert "submodule libs/one" in caught.value.reason
    assert not canary.exists()


def test_a_submodule_has_to_match_the_list(
    filled: Callable[..., Workspace], library: Origin
) -> None:
    with pytest.raises(PolicyViolation) as caught:
        filled(allowed="https://*")
    told = f"submodule libs/one leads to {library.path}, which is not allowed by [agents]"
    assert caught.value.reason.startswith(told)


@pytest.mark.parametrize("path", ["../outside", "libs/../../outside", ".git/hooks", "src"])
def test_a_path_that_is_no_submodule_is_nothing(
    filled: Callable[..., Workspace], library: Origin, origin: Origin, path: str, root: Path
) -> None:
    modules(origin, str(library.path), path)
    with pytest.raises(InvalidDefinition, match="has no URL in"):
        filled()
    assert not list(root.rglob("lib.py"))


def test_a_tree_that_leads_out_of_itself_is_refused(
    filled: Callable[..., Workspace], library: Origin, origin: Origin, root: Path
) -> None:
    blob = origin.git("hash-object", "-w", ".gitmodules")
    entries = f"100644 blob {blob}\t.gitmodules\n160000 commit {library.at('main')}\t..\n"
    tree = subprocess.run(
        ["git", "mktree", "--missing"],
        cwd=origin.clone, env=origin.env, input=entries, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    commit = origin.git("commit-tree", tree, "-m", "evil")
    origin.git("push", "-q", "--force", "origin", f"{commit}:refs/heads/main")
    with pytest.raises((InvalidDefinition, AgentFailed)):
        filled()
    assert not list(root.rglob("lib.py"))


def test_submodules_of_submodules(
    filled: Callable[..., Workspace], library: Origin, origin: Origin, tmp_path: Path
) -> None:
    inner = Origin(tmp_path / "inner")
    inner.commit({"inner.py": "inner\n"})
    library.git(*LOCAL, "submodule", "add", "../../inner/origin.git", "deps/inner")
    library.commit({"lib.py": "lib 2\n"})
    origin.git(*LOCAL, "-C", "libs/one", "pull", "-q", "origin", "main")
    origin.commit({"x": "x 2\n"})
    workspace = filled()
    nested = workspace.path / "libs/one/deps/inner/inner.py"
    assert nested.read_text() == "inner\n"
    assert workspace.checkpoint({}, "x") is None
    commit = workspace.commit_step("x", {})
    assert workspace.submodule_changes(commit) == []
    nested.write_text("changed\n")
    (workspace.path / "libs/one/lib.py").write_text("changed\n")
    commit = workspace.commit_step("x", {})
    changed = workspace.submodule_changes(commit)
    assert changed == ["libs/one/lib.py", "libs/one/deps/inner/inner.py"]
    workspace.restore()
    assert nested.read_text() == "inner\n"


def test_submodules_without_end(
    filled: Callable[..., Workspace], library: Origin, tmp_path: Path
) -> None:
    # Each contains the next; a commit cannot contain itself.
    above = library
    origin = Origin(tmp_path / "deep")
    for count in range(5):
        origin = Origin(tmp_path / f"deep{count}")
        origin.git(*LOCAL, "submodule", "add", str(above.path), "in")
        origin.commit({"x": "x"})
        above = origin
    repository = Repository(str(origin.path))
    with pytest.raises(InvalidDefinition, match="more than 4 deep in each other, at in/in/in/in/"):
        filled(repository=repository, base=origin.at("main"))


def test_a_sparse_checkout_leaves_submodules_out(
    filled: Callable[..., Workspace], library: Origin
) -> None:
    workspace = filled(sparse=("src/**",))
    assert not (workspace.path / "libs").exists()
    commit = workspace.commit_step("x", {})
    assert (workspace.changed_paths(commit), workspace.submodule_changes(commit)) == ([], [])
    assert (filled(sparse=("libs/**",), number=2).path / "libs/one/lib.py").exists()


def test_a_nested_repository_in_a_submodule_is_refused(
    filled: Callable[..., Workspace], library: Origin, canary: Path
) -> None:
    workspace = filled()
    place = workspace.path / "libs/one"
    library.git("init", "-q", cwd=place)
    library.git("config", "core.fsmonitor", f"touch {canary}", cwd=place)
    with pytest.raises(PolicyViolation, match="in libs/one/"):
        workspace.commit_step("x", {})
    assert not canary.exists()


def test_a_hosted_agent_cannot_move_a_submodule(
    filled: Callable[..., Workspace], library: Origin, origin: Origin
) -> None:
    workspace = filled()
    library.commit({"lib.py": "lib 2\n"})
    origin.git(*LOCAL, "-C", "libs/one", "pull", "-q", "origin", "main")
    origin.commit({"x": "x 2\n"}, branch="agents/hosted")
    workspace.adopt(workspace.fetch_branch("agents/hosted"))
    commit = workspace.commit_step("x", {})
    assert workspace.submodule_changes(commit) == ["libs/one"]


@pytest.mark.parametrize(
    ("url", "parent", "expected"),
    [
        ("../b.git", "https://h/a.git", "https://h/b.git"),
        ("../../o/b", "https://h/y/a.git/", "https://h/o/b"),
        ("./b", "https://h/a", "https://h/a/b"),
        ("../b", "git@h:y/a", "git@h:y/b"),
        ("../b", "git@h:a", "git@h:b"),
        ("../b", "/srv/git/a.git", "/srv/git/b"),
        ("https://x/y", "https://h/a", "https://x/y"),
    ],
)
def test_relative_urls_are_gits(url: str, parent: str, expected: str) -> None:
    assert _absolute(url, parent) == expected


@pytest.mark.integration
def test_credentials_reach_a_submodule_of_the_same_host_alone(
    filled: Callable[..., Workspace],
    library: Origin,
    origin: Origin,
    git_server: GitServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from airflow_agent_provider.hooks.repository import repository_access

    secret = os.urandom(6).hex()
    monkeypatch.setenv(
        "AIRFLOW_CONN_TEAM", f'{{"conn_type": "git", "login": "ada", "password": "{secret}"}}'
    )
    private = library.path.rename(library.path.with_name("private.git"))
    git_server.serve(private, login=f"ada:{secret}")
    modules(origin, "../private.git")
    public = origin.path.rename(origin.path.with_name("public.git"))
    origin.git("remote", "set-url", "origin", str(public))
    git_server.serve(public)
    url = git_server.url("public.git")
    repository = repository_access(url, "main", "team")
    base = origin.git("rev-parse", "HEAD")
    host = url.removesuffix("/public.git")
    workspace = filled(repository=repository, base=base, allowed=f"{host}/*")
    assert (workspace.path / "libs/one/lib.py").read_text() == "lib\n"
