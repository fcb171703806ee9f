"""Files that git-lfs manages, by the real git-lfs: their content is there, and no part of git."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import AgentFailure, Unavailable
from airflow_agent_provider.sandbox.git_box import GitBox
from airflow_agent_provider.workspace.checkout import Checkout
from airflow_agent_provider.workspace.git import GitRunners
from airflow_agent_provider.workspace.lfs import pointed
from airflow_agent_provider.workspace.workspace import Workspace

from .conftest import Origin
from .test_workspace import in_tree, ours, step

pytestmark = pytest.mark.integration

Prepare = Callable[..., Workspace]
BIG = "content of the model\n" * 5000


@pytest.fixture(params=["plain", "boxed"])
def runners(request: pytest.FixtureRequest) -> GitRunners | None:
    return GitBox if request.param == "boxed" else None


@pytest.fixture
def filled(prepare: Prepare, origin: Origin) -> Callable[..., Workspace]:
    """Return what prepares a workspace whose ``*.bin`` files git-lfs manages."""
    origin.git("lfs", "install", "--local")
    origin.git("lfs", "track", "*.bin")
    origin.commit({"models/a.bin": BIG, "b.bin": "b\n", "src/app.py": "app\n"})

    def make(
        step_id: str = "plan", number: int = 1, sparse: tuple[str, ...] = (), **more: object
    ) -> Workspace:
        return prepare(step_id, number, checkout=Checkout(sparse, lfs=True), **more)

    return make


def test_the_content_is_there_and_git_has_the_pointer(
    filled: Callable[..., Workspace], tmp_path: Path
) -> None:
    workspace = filled()
    assert (workspace.path / "models/a.bin").read_text() == BIG
    assert in_tree(workspace, "status", "--porcelain") == ""
    assert workspace.checkpoint({}, "x") is None
    (workspace.path / "src/app.py").write_text("app 2\n")
    commit = workspace.commit_step("x", {})
    assert workspace.changed_paths(commit) == ["src/app.py"]
    assert workspace.lfs_changes() == []
    digest = hashlib.sha256(BIG.encode()).hexdigest()
    assert f"oid sha256:{digest}" in ours(workspace, "show", f"{commit}:models/a.bin")
    following = filled("implement", upstreams=[step(workspace, {"c": "c"}, tmp_path)])
    assert (following.path / "models/a.bin").read_text() == BIG


def test_without_lfs_they_are_pointers(filled: object, prepare: Prepare) -> None:
    workspace = prepare()
    assert pointed((workspace.path / "models/a.bin").read_bytes())


def edit(tree: Path) -> None:
    (tree / "models/a.bin").write_text("new\n" + BIG)


def same_size(tree: Path) -> None:
    (tree / "models/a.bin").write_text(BIG.replace("model", "MODEL"))


def delete(tree: Path) -> None:
    (tree / "models/a.bin").unlink()


def link(tree: Path) -> None:
    (tree / "models/a.bin").unlink()
    (tree / "models/a.bin").symlink_to("../b.bin")


def folder(tree: Path) -> None:
    (tree / "models/a.bin").unlink()
    (tree / "models/a.bin").mkdir()


def link_above(tree: Path) -> None:
    (tree / "models").rename(tree.parent / "home" / "models")
    (tree / "models").symlink_to(tree.parent / "home" / "models")


def rename(tree: Path) -> None:
    (tree / "models/a.bin").rename(tree / "models/new.bin")


def add(tree: Path) -> None:
    (tree / "new.bin").write_text(BIG)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (edit, ["models/a.bin"]),
        (same_size, ["models/a.bin"]),
        (delete, ["models/a.bin"]),
        (link, ["models/a.bin"]),
        (folder, ["models/a.bin"]),
        (link_above, ["models/a.bin"]),
        (rename, ["models/a.bin", "models/new.bin"]),
        (add, ["new.bin"]),
    ],
)
@pytest.mark.parametrize("sparse", [(), ("models/**", "src/**")])
def test_a_change_of_them_is_named(
    filled: Callable[..., Workspace],
    change: Callable[[Path], None],
    names: list[str],
    sparse: tuple[str, ...],
) -> None:
    workspace = filled(sparse=sparse)
    assert (workspace.path / "models/a.bin").read_text() == BIG
    change(workspace.path)
    workspace.checkpoint({}, "x")
    commit = workspace.commit_step("x", {})
    assert workspace.lfs_changes() == names
    tree = ours(workspace, "ls-tree", "-r", "-l", commit)
    assert str(len(BIG)) not in tree or change in (rename, add)


def test_the_same_content_again_is_no_change(filled: Callable[..., Workspace]) -> None:
    workspace = filled()
    (workspace.path / "models/a.bin").unlink()
    (workspace.path / "models/a.bin").write_text(BIG)
    commit = workspace.commit_step("x", {})
    assert (workspace.lfs_changes(), workspace.changed_paths(commit)) == ([], [])


def test_a_pointer_that_a_step_writes_is_work(filled: Callable[..., Workspace]) -> None:
    workspace = filled()
    pointer = ours(workspace, "show", f"{workspace.base}:models/a.bin") + "\n"
    (workspace.path / "copy.bin").write_text(pointer)
    commit = workspace.commit_step("x", {})
    assert (workspace.lfs_changes(), workspace.changed_paths(commit)) == ([], ["copy.bin"])


@pytest.mark.parametrize("sparse", [(), ("models/**", "src/**")])
def test_restoring_leaves_the_content(
    filled: Callable[..., Workspace], sparse: tuple[str, ...]
) -> None:
    workspace = filled(sparse=sparse)
    (workspace.path / "left").write_text("left\n")
    (workspace.path / "src/app.py").write_text("spoilt\n")
    workspace.settle_setup()
    assert (workspace.path / "models/a.bin").read_text() == BIG
    commit = workspace.commit_step("x", {})
    (workspace.path / "src/app.py").write_text("spoilt\n")
    workspace.restore()
    assert (workspace.path / "src/app.py").read_text() == "app\n"
    assert (workspace.path / "models/a.bin").read_text() == BIG
    assert (workspace.lfs_changes(), workspace.changed_paths(commit)) == ([], [])


def test_no_filter_runs(filled: Callable[..., Workspace], canary: Path, tmp_path: Path) -> None:
    workspace = filled()
    program = f"sh -c 'touch {canary}; cat'"
    in_tree(workspace, "config", "filter.lfs.clean", program)
    in_tree(workspace, "config", "filter.lfs.smudge", program)
    text = f'[lfs]\n\turl = http://127.0.0.1:1/\n[lfs "extension.x"]\n\tclean = {program}\n'
    work = step(workspace, {".lfsconfig": text, "src/app.py": "app 2\n"}, tmp_path)
    following = filled("implement", upstreams=[work])
    assert (following.path / "models/a.bin").read_text() == BIG
    following.commit_step("x", {})
    assert not canary.exists()


def test_an_object_that_is_gone(filled: Callable[..., Workspace], origin: Origin) -> None:
    digest = hashlib.sha256(BIG.encode()).hexdigest()
    next((origin.path / "lfs").rglob(digest)).unlink()
    with pytest.raises(AgentFailure, match=digest):
        filled()


def test_a_worker_without_the_program_names_the_package(
    filled: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(Unavailable, match="apt-get install git-lfs"):
        filled()
