from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import (
    AgentFailed,
    InvalidDefinition,
    OutputInvalid,
    PolicyViolation,
)
from airflow_agent_provider.workspace.merge import MergeConflict
from airflow_agent_provider.workspace.repository import Repository, resolve_base
from airflow_agent_provider.workspace.workspace import Upstream, Workspace

from .conftest import Origin, attempt_of

pytestmark = pytest.mark.integration

TRAILERS = {"Agents-Workflow": "demo", "Agents-Step": "plan", "Agents-Attempt": "1"}


def in_tree(workspace: Workspace, *args: str) -> str:
    """Run git as an agent does: in the tree, by discovery."""
    env = {"PATH": os.environ["PATH"], "HOME": str(workspace.home)}
    done = subprocess.run(
        ["git", *args], cwd=workspace.path, env=env, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def ours(workspace: Workspace, *args: str) -> str:
    """Run git on our own git directory."""
    return workspace._git.line(*args)


def files_of(workspace: Workspace) -> dict[str, str]:
    return {
        path.relative_to(workspace.path).as_posix(): path.read_text()
        for path in sorted(workspace.path.rglob("*"))
        if path.is_file() and ".git" not in path.parts
    }


def step(workspace: Workspace, files: dict[str, str], to: Path) -> Upstream:
    """Do a step's work and return it as the next step gets it."""
    for name, text in files.items():
        path = workspace.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    step_id = workspace.attempt.step.step_id
    commit = workspace.commit_step(f"Work of {step_id}", {"Agents-Step": step_id})
    bundle = to / f"{step_id}.bundle"
    return Upstream(step_id, commit, bundle if workspace.bundle(commit, bundle) else None)


Prepare = Callable[..., Workspace]


def test_a_fresh_workspace_is_an_ordinary_repository_for_the_agent(
    prepare: Prepare, origin: Origin
) -> None:
    workspace = prepare()
    assert workspace.base == workspace.start == origin.at("main")
    assert workspace.path.name == "tree"
    assert stat.S_IMODE(workspace.home.stat().st_mode) == 0o700
    assert files_of(workspace) == {"README.md": "# Demo\n", "src/app.py": "one\ntwo\nthree\n"}
    assert in_tree(workspace, "status", "--porcelain") == ""
    assert in_tree(workspace, "branch", "--show-current") == workspace.attempt.step.run_branch
    assert in_tree(workspace, "log", "--format=%H") == workspace.base
    (workspace.path / "README.md").write_text("changed\n")
    assert "+changed" in in_tree(workspace, "diff")
    in_tree(workspace, "commit", "-qam", "The agent commits too")
    assert in_tree(workspace, "remote") == ""


def test_the_path_is_the_same_on_every_worker(prepare: Prepare, root: Path) -> None:
    workspace = prepare(number=3)
    assert workspace.path == root / workspace.attempt.step.prefix / "tree"


def test_a_checkpoint_has_the_work_the_trailers_and_the_attempts_ref(prepare: Prepare) -> None:
    workspace = prepare()
    assert workspace.checkpoint(TRAILERS, "Session start") is None
    (workspace.path / "new.txt").write_text("new\n")
    (workspace.path / "src/app.py").unlink()
    first = workspace.checkpoint(TRAILERS, "After\nediting")
    assert first is not None
    assert workspace.checkpoint(TRAILERS, "Again") is None
    (workspace.path / "new.txt").write_text("newer\n")
    second = workspace.checkpoint(TRAILERS, "Later")
    assert ours(workspace, "rev-parse", f"{second}~1", f"{second}~2").split() == [
        first,
        workspace.start,
    ]
    assert ours(workspace, "rev-parse", workspace.attempt.ref) == second
    assert ours(workspace, "ls-tree", "-r", "--name-only", str(second)).split() == [
        "README.md",
        "new.txt",
    ]
    trailers = ours(workspace, "show", "-s", "--format=%s|%an <%ae>|%(trailers:only)", first)
    assert trailers.startswith("After editing|Airflow agents <agents@airflow.invalid>|")
    assert trailers.split("|")[2].splitlines() == [f"{k}: {v}" for k, v in TRAILERS.items()]


def test_the_agents_index_and_head_are_left_alone(prepare: Prepare) -> None:
    workspace = prepare()
    (workspace.path / "staged.txt").write_text("staged\n")
    in_tree(workspace, "add", "staged.txt")
    (workspace.path / "unstaged.txt").write_text("unstaged\n")
    before = in_tree(workspace, "status", "--porcelain")
    workspace.checkpoint(TRAILERS, "x")
    workspace.commit_step("x", TRAILERS)
    assert in_tree(workspace, "status", "--porcelain") == before
    assert in_tree(workspace, "rev-parse", "HEAD") == workspace.start


def test_ignored_files_are_not_work(prepare: Prepare) -> None:
    workspace = prepare()
    (workspace.path / ".gitignore").write_text("build/\n")
    (workspace.path / "build").mkdir()
    (workspace.path / "build/out.o").write_text("object\n")
    commit = workspace.checkpoint(TRAILERS, "x")
    assert commit is not None
    assert workspace.changed_paths(commit) == [".gitignore"]


def test_trailers_and_subjects_cannot_be_forged(prepare: Prepare) -> None:
    workspace = prepare()
    commit = workspace.commit_step("Subject\n\nAgents-Step: forged", {"Agents-Step": "a\nb: c"})
    assert (
        ours(workspace, "show", "-s", "--format=%(trailers:only)", commit) == "Agents-Step: a b: c"
    )


def test_a_step_is_one_commit_whatever_happened_meanwhile(prepare: Prepare, tmp_path: Path) -> None:
    workspace = prepare()
    (workspace.path / "a.txt").write_text("a\n")
    workspace.checkpoint(TRAILERS, "half")
    (workspace.path / "b.txt").write_text("b\n")
    commit = workspace.commit_step("plan: done", TRAILERS)
    assert ours(workspace, "rev-list", "--parents", "-1", commit).split() == [
        commit,
        workspace.start,
    ]
    assert ours(workspace, "rev-parse", workspace.attempt.step.run_branch) == commit
    assert workspace.changed_paths(commit) == ["a.txt", "b.txt"]


def test_a_step_that_changes_nothing_is_told_of(prepare: Prepare, tmp_path: Path) -> None:
    workspace = prepare()
    commit = workspace.commit_step("review: nothing to change", TRAILERS)
    assert commit != workspace.start
    assert workspace.changed_paths(commit) == []
    assert workspace.patch(commit) == b""
    assert workspace.bundle(commit, tmp_path / "x.bundle")


def test_the_base_needs_no_bundle(prepare: Prepare, tmp_path: Path) -> None:
    workspace = prepare()
    assert workspace.bundle(workspace.start, tmp_path / "x.bundle") is False
    assert list(tmp_path.glob("*.bundle*")) == []


def test_the_patch_applies_and_is_safe_for_binaries(
    prepare: Prepare, origin: Origin, tmp_path: Path
) -> None:
    workspace = prepare()
    (workspace.path / "logo.bin").write_bytes(bytes(range(256)))
    (workspace.path / "src/app.py").write_text("one\n2\nthree\n")
    (workspace.path / "größe .txt").write_text("ß\n")
    commit = workspace.commit_step("x", TRAILERS)
    patch = tmp_path / "changes.patch"
    patch.write_bytes(workspace.patch(commit))
    origin.git("apply", "--index", str(patch))
    assert origin.git("write-tree") == ours(workspace, "rev-parse", f"{commit}^{{tree}}")
    assert workspace.changed_paths(commit) == ["größe .txt", "logo.bin", "src/app.py"]


def test_a_step_continues_on_another_worker(prepare: Prepare, tmp_path: Path) -> None:
    plan = step(prepare("plan"), {"docs/plan.md": "plan\n"}, tmp_path)
    other = prepare("implement", root=tmp_path / "other", upstreams=[plan])
    assert other.start == plan.commit
    assert files_of(other)["docs/plan.md"] == "plan\n"
    work = step(other, {"src/app.py": "1\n"}, tmp_path)
    third = prepare("test", root=tmp_path / "third", upstreams=[work])
    assert ours(third, "log", "--format=%s", f"{third.base}..{third.start}").splitlines() == [
        "Work of implement",
        "Work of plan",
    ]
    assert in_tree(third, "status", "--porcelain") == ""


def test_an_attempt_continues_another_workers_checkpoint(prepare: Prepare, tmp_path: Path) -> None:
    plan = step(prepare("plan"), {"docs/plan.md": "plan\n"}, tmp_path)
    first = prepare("implement", 1, upstreams=[plan])
    (first.path / "half.txt").write_text("half\n")
    checkpoint = first.checkpoint(TRAILERS, "x")
    assert checkpoint is not None
    bundle = tmp_path / "checkpoint.bundle"
    assert first.bundle(checkpoint, bundle)

    second = prepare(
        "implement",
        2,
        root=tmp_path / "other",
        upstreams=[plan],
        checkpoint=Upstream("implement", checkpoint, bundle),
    )
    assert second.start == plan.commit
    assert files_of(second)["half.txt"] == "half\n"
    # What the step did so far shows as uncommitted work.
    assert in_tree(second, "status", "--porcelain") == "?? half.txt"
    assert second.checkpoint(TRAILERS, "nothing new") is None
    (second.path / "half.txt").write_text("whole\n")
    later = second.checkpoint(TRAILERS, "x")
    assert later is not None
    assert ours(second, "rev-parse", f"{later}~1") == checkpoint
    commit = second.commit_step("x", TRAILERS)
    assert ours(second, "rev-parse", f"{commit}~1") == plan.commit
    assert second.changed_paths(commit) == ["half.txt"]


def test_left_overs_of_an_earlier_attempt_are_gone(prepare: Prepare) -> None:
    workspace = prepare(number=1)
    (workspace.path / "README.md").write_text("spoilt\n")
    (workspace.path / "left").mkdir()
    (workspace.path / "left/over.txt").write_text("x")
    (workspace.path / "left").chmod(0)
    (workspace.path / ".git/index.lock").touch()
    (workspace.path.parent / "git/index.lock").touch()
    (workspace.home / "state").write_text("old session")
    again = prepare(number=2)
    assert again.path == workspace.path
    assert sorted(files_of(again)) == ["README.md", "src/app.py"]
    assert in_tree(again, "status", "--porcelain") == ""
    assert list(again.home.iterdir()) == []
    assert sorted(p.name for p in again.path.parent.iterdir()) == ["git", "home", "tree"]


def test_a_lock_of_a_killed_git_does_not_stop_a_checkpoint(prepare: Prepare) -> None:
    workspace = prepare()
    (workspace.path.parent / "git/index.lock").touch()
    (workspace.path / "x.txt").write_text("x")
    assert workspace.checkpoint(TRAILERS, "x")


def test_steps_side_by_side_are_merged_alike_on_every_worker(
    prepare: Prepare, tmp_path: Path
) -> None:
    plan = step(prepare("plan"), {"docs/plan.md": "plan\n"}, tmp_path)
    code = step(prepare("code", upstreams=[plan]), {"src/app.py": "1\ntwo\nthree\n"}, tmp_path)
    tests = step(prepare("tests", upstreams=[plan]), {"tests/t.py": "t\n"}, tmp_path)
    docs = step(prepare("docs", upstreams=[plan]), {"docs/more.md": "d\n"}, tmp_path)
    first = prepare("review", upstreams=[code, tests, docs])
    second = prepare("review", root=tmp_path / "other", upstreams=[docs, plan, tests, code])
    assert first.start == second.start
    assert files_of(first) == {
        "README.md": "# Demo\n",
        "docs/more.md": "d\n",
        "docs/plan.md": "plan\n",
        "src/app.py": "1\ntwo\nthree\n",
        "tests/t.py": "t\n",
    }
    assert in_tree(first, "status", "--porcelain") == ""
    # And the merge travels on in the next bundle.
    review = step(first, {"review.md": "fine\n"}, tmp_path)
    last = prepare("last", root=tmp_path / "third", upstreams=[review])
    assert last.start == review.commit


def test_an_upstream_that_another_contains_needs_no_merge(prepare: Prepare, tmp_path: Path) -> None:
    plan = step(prepare("plan"), {"a": "a\n"}, tmp_path)
    code = step(prepare("code", upstreams=[plan]), {"b": "b\n"}, tmp_path)
    assert prepare("test", upstreams=[plan, code]).start == code.commit


def test_a_conflict_names_the_steps_and_the_files(prepare: Prepare, tmp_path: Path) -> None:
    one = step(prepare("one"), {"src/app.py": "1\ntwo\nthree\n"}, tmp_path)
    other = step(prepare("other"), {"elsewhere.txt": "x\n"}, tmp_path)
    two = step(prepare("two"), {"src/app.py": "I\ntwo\nthree\n"}, tmp_path)
    with pytest.raises(InvalidDefinition) as caught:
        prepare("review", upstreams=[two, other, one])
    assert caught.value.failure_class == "InvalidDefinition"
    assert caught.value.reason.startswith(
        "step 'one' and step 'two' changed the same lines of: src/app.py;"
    )


def test_merges_do_not_depend_on_attributes_of_the_tree(prepare: Prepare, tmp_path: Path) -> None:
    union = {".gitattributes": "* merge=union\n"}
    one = step(prepare("one"), {"src/app.py": "1\ntwo\nthree\n", **union}, tmp_path)
    two = step(prepare("two"), {"src/app.py": "I\ntwo\nthree\n", **union}, tmp_path)
    with pytest.raises(MergeConflict):
        prepare("review", upstreams=[one, two])


def test_a_damaged_bundle_names_its_step(prepare: Prepare, tmp_path: Path) -> None:
    plan = step(prepare("plan"), {"a": "a\n"}, tmp_path)
    assert plan.bundle is not None
    plan.bundle.write_bytes(plan.bundle.read_bytes()[:-30])
    with pytest.raises(AgentFailed, match="the checkpoint of step 'plan' cannot be read"):
        prepare("code", root=tmp_path / "other", upstreams=[plan])
    missing = Upstream("plan", "a" * 40)
    with pytest.raises(AgentFailed, match="clear that step"):
        prepare("code", upstreams=[missing])


def test_a_bundle_is_as_small_as_the_change(
    prepare: Prepare, origin: Origin, tmp_path: Path
) -> None:
    noise = "".join(f"{n * 7919 % 10007:x} line {n}\n" for n in range(60_000))
    origin.commit({"big.txt": noise, **{f"many/{n}.txt": f"{n}\n" for n in range(2_000)}})
    workspace = prepare()
    big = workspace.path / "big.txt"
    big.write_text(big.read_text() + "".join(f"more {n}\n" for n in range(10)))
    commit = workspace.checkpoint(TRAILERS, "x")
    assert commit is not None
    bundle = tmp_path / "x.bundle"
    assert workspace.bundle(commit, bundle)
    assert bundle.stat().st_size < 20_000
    other = prepare(number=2, root=tmp_path / "other", checkpoint=Upstream("plan", commit, bundle))
    assert (other.path / "big.txt").read_text() == big.read_text()


def test_checkpoints_work_while_the_agent_edits(prepare: Prepare) -> None:
    workspace = prepare()
    done = threading.Event()

    def edit() -> None:
        n = 0
        while not done.is_set():
            n += 1
            scratch = workspace.path / f"scratch-{n % 7}"
            scratch.mkdir(exist_ok=True)
            (scratch / f"{n}.tmp").write_bytes(b"x" * (n % 5) * 40_000)
            (workspace.path / "kept.txt").write_text(f"{n}\n")
            if n % 3 == 0:
                shutil.rmtree(scratch)
            done.wait(0.001)

    editor = threading.Thread(target=edit)
    editor.start()
    try:
        commits = [workspace.checkpoint(TRAILERS, "x") for _ in range(12)]
    finally:
        done.set()
        editor.join()
    assert any(commits)
    commit = workspace.commit_step("x", TRAILERS)
    assert "kept.txt" in workspace.changed_paths(commit)


def test_a_folder_that_cannot_be_made_is_a_failure(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AgentFailed, match=r"the workspace .*file"):
        prepare(root=tmp_path / "file", base="a" * 40)


def test_the_run_without_a_repository(root: Path, tmp_path: Path) -> None:
    base = resolve_base(Repository(), root / "mirrors")
    workspace = Workspace.prepare(
        root=root, attempt=attempt_of("plan"), repository=Repository(), base=base
    )
    plan = step(workspace, {"plan.md": "plan\n"}, tmp_path)
    other = Workspace.prepare(
        root=tmp_path / "other",
        attempt=attempt_of("code"),
        repository=Repository(),
        base=base,
        upstreams=[plan],
    )
    assert files_of(other) == {"plan.md": "plan\n"}
    for call in (lambda: other.push(plan.commit, "x"), lambda: other.fetch_branch("x")):
        with pytest.raises(InvalidDefinition, match="name a repository"):
            call()


def test_a_cold_worker_fetches_the_base_though_its_branch_has_moved(
    prepare: Prepare, origin: Origin, tmp_path: Path
) -> None:
    base = origin.at("main")
    origin.commit({"later.txt": "x"})
    workspace = prepare(root=tmp_path / "cold", base=base)
    assert workspace.start == base
    assert not (workspace.path / "later.txt").exists()


def test_a_warm_worker_needs_no_network(prepare: Prepare, origin: Origin) -> None:
    base = prepare("plan").base
    shutil.rmtree(origin.path)
    assert prepare("code", base=base).start == base


def test_a_hosted_agents_branch_is_fetched_and_adopted(
    prepare: Prepare, origin: Origin, tmp_path: Path
) -> None:
    workspace = prepare()
    (workspace.path / "scratch.txt").write_text("of nobody\n")
    theirs = origin.commit({"docs/plan.md": "hosted plan\n"}, branch="cursor/plan-1")
    commit = workspace.fetch_branch("cursor/plan-1")
    assert commit == theirs
    workspace.adopt(commit)
    assert files_of(workspace)["docs/plan.md"] == "hosted plan\n"
    assert not (workspace.path / "scratch.txt").exists()
    assert workspace.read_output("docs/plan.md") == b"hosted plan\n"
    mine = workspace.commit_step("plan: done", TRAILERS)
    assert ours(workspace, "rev-parse", f"{mine}^{{tree}}") == ours(
        workspace, "rev-parse", f"{theirs}^{{tree}}"
    )
    assert ours(workspace, "rev-parse", f"{mine}~1") == workspace.start
    assert in_tree(workspace, "status", "--porcelain") == "?? docs/"


@pytest.mark.parametrize("branch", ["gone", "*", "a:b", "a b", "-x", "+x"])
def test_a_hosted_agents_branch_that_is_not_there(prepare: Prepare, branch: str) -> None:
    with pytest.raises(AgentFailed) as caught:
        prepare().fetch_branch(branch)
    assert branch in caught.value.reason


def test_submodules_are_kept_as_they_are(prepare: Prepare, origin: Origin, tmp_path: Path) -> None:
    library = Origin(tmp_path / "library")
    pinned = library.commit({"lib.py": "lib\n"})
    origin.git("-c", "protocol.file.allow=always", "submodule", "add", str(library.path), "lib")
    origin.commit({"x": "x"})
    workspace = prepare()
    assert list((workspace.path / "lib").iterdir()) == []
    assert workspace.checkpoint(TRAILERS, "x") is None
    (workspace.path / "x").write_text("y\n")
    commit = workspace.commit_step("x", TRAILERS)
    assert workspace.changed_paths(commit) == ["x"]
    assert ours(workspace, "rev-parse", f"{commit}:lib") == pinned
    # An agent that fetches the submodule leaves a repository inside of the workspace.
    in_tree(workspace, "-c", "protocol.file.allow=always", "submodule", "update", "--init")
    with pytest.raises(PolicyViolation, match="in lib/"):
        workspace.checkpoint(TRAILERS, "x")
    # Its files without its .git are plain files.
    (workspace.path / "lib/.git").unlink()
    commit = workspace.commit_step("x", TRAILERS)
    assert workspace.changed_paths(commit) == ["lib", "lib/lib.py", "x"]


def test_empty_folders_of_agent_programs_go(prepare: Prepare) -> None:
    workspace = prepare()
    for name in (".codex", ".aws", ".agents"):
        (workspace.path / name).mkdir()
    (workspace.path / ".agents/notes.md").write_text("kept\n")
    workspace.commit_step("x", TRAILERS)
    assert sorted(p.name for p in workspace.path.glob(".a*")) == [".agents"]
    assert not (workspace.path / ".codex").exists()


def test_output_is_read_below_the_tree(prepare: Prepare) -> None:
    workspace = prepare()
    assert workspace.read_output("src/app.py") == b"one\ntwo\nthree\n"
    with pytest.raises(OutputInvalid, match="is missing"):
        workspace.read_output("docs/plan.md")


def test_workspaces_of_mapped_steps_and_runs_are_apart(
    prepare: Prepare, root: Path, origin: Origin
) -> None:
    first, second = prepare("one"), prepare("two")
    (first.path / "x").write_text("x")
    assert files_of(second) == files_of(prepare("three"))
    assert first.path != second.path
