"""Bounds on a whole box, and what is told where they cannot be had."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from airflow_agent_provider.agents.contract import AgentTask
from airflow_agent_provider.sandbox import cgroups
from airflow_agent_provider.sandbox import weaknesses as weaknesses_module
from airflow_agent_provider.sandbox.box import Program, open_box
from airflow_agent_provider.sandbox.cgroups import Cgroup, make_cgroup
from airflow_agent_provider.sandbox.weaknesses import weaknesses

from .conftest import Shell, confined, enter, python

pytestmark = pytest.mark.integration

FORKS = """
import os, sys, time
count = 0
for _ in range(400):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    except OSError:
        break
    count += 1
print(count, flush=True)
"""
ALLOCATES = """
import mmap, os, sys
def take():
    block = mmap.mmap(-1, 200 * 1024**2)
    for place in range(0, len(block), 4096):
        block[place] = 1
    print("held", flush=True)
    sys.stdin.read()
for _ in range(4):
    if os.fork() == 0:
        take()
        os._exit(0)
print("end", flush=True)
"""


def needs(kind: str) -> None:
    trial = make_cgroup("trial", 10, 1024**3)
    trial.close()
    if kind not in trial.kinds:
        pytest.skip(f"this worker may make no cgroup that bounds {kind}")


def test_a_fork_bomb_ends_at_the_bound_for_every_user(task: AgentTask) -> None:
    if os.geteuid() == 0:
        needs("pids")
    task = confined(task, processes=60)
    with open_box(task, Program(("/bin/sh", "-c", python(FORKS)))) as box:
        done = enter(box)
    # Ordinary users are held by the kernel's own limit, which counts what they have outside too.
    assert 10 < int(done.stdout) <= 60


def test_the_memory_of_all_processes_together_is_bounded(task: AgentTask) -> None:
    needs("memory")
    task = confined(task, memory=400 * 1024**2)
    with open_box(task, Program(("/bin/sh", "-c", python(ALLOCATES)))) as box:
        done = enter(box)
    assert done.stdout.count("held") < 4


def test_nothing_is_left_of_them(task: AgentTask, shell: Shell) -> None:
    with open_box(task, Program(("/bin/true",))) as box:
        folders = box._cgroup.folders
        enter(box)
    assert not any(folder.exists() for folder in folders)


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, mounts: str, own: str) -> None:
    (folder / "mountinfo").write_text(mounts)
    (folder / "cgroup").write_text(own)
    monkeypatch.setattr(cgroups, "_MOUNTS", folder / "mountinfo")
    monkeypatch.setattr(cgroups, "_SELF", folder / "cgroup")


def mount(folder: Path, root: str, rest: str) -> str:
    return f"30 29 0:26 {root} {folder} rw,nosuid,nodev,noexec,relatime shared:4 - {rest}\n"


def birth(parent: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let folders made below ``parent`` have the files that the kernel would make in them."""
    real = Path.mkdir

    def mkdir(self: Path, *args: object, **more: object) -> None:
        real(self, *args, **more)  # type: ignore[arg-type]
        if self.is_relative_to(parent):
            for name in names if self.parent == parent else ["cgroup.procs"]:
                (self / name).touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)


def test_version_two_beside_the_workers_own_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On files that look like it: below a group with processes, no bounds can be had."""
    (tmp_path / "system.slice/worker.service").mkdir(parents=True)
    fake(tmp_path, monkeypatch, mount(tmp_path, "/", "cgroup2 cgroup2 rw"),
         "0::/system.slice/worker.service\n")  # fmt: skip
    birth(tmp_path / "system.slice", ["cgroup.procs", "pids.max", "memory.max"], monkeypatch)
    made = make_cgroup("x", 7, 1000)
    folder = tmp_path / "system.slice/agent-box-x"
    assert (made.folders, made.kinds) == ((folder,), {"pids", "memory"})
    assert (folder / "pids.max").read_text() == "7"
    assert (folder / "memory.max").read_text() == "1000"
    assert made.entrances == [str(folder / "cgroup.procs")]


def test_version_one_has_a_group_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pids").mkdir()
    (tmp_path / "memory/own").mkdir(parents=True)
    mounts = mount(tmp_path / "pids", "/", "cgroup cgroup rw,pids")
    mounts += mount(tmp_path / "memory", "/docker/abc", "cgroup cgroup rw,memory")
    fake(tmp_path, monkeypatch, mounts, "8:pids:/\n4:memory:/docker/abc/own\n1:cpu,cpuacct:/\n")
    birth(tmp_path / "pids", ["cgroup.procs", "pids.max"], monkeypatch)
    made = make_cgroup("x", 7, 1000)
    # The bound of memory is refused there, and that of processes holds all the same.
    assert (made.folders, made.kinds) == ((tmp_path / "pids/agent-box-x",), {"pids"})


@pytest.mark.parametrize("own", ["0::/../elsewhere\n", "", "nonsense\n"])
def test_no_group_where_none_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    fake(tmp_path, monkeypatch, mount(tmp_path / "none", "/", "cgroup2 cgroup2 rw"), own)
    assert make_cgroup("x", 7, 1000) == Cgroup()


def test_what_killed_workers_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, age in (("agent-box-old", 90_000), ("agent-box-new", 60), ("other", 90_000)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    fake(tmp_path, monkeypatch, mount(tmp_path, "/", "cgroup2 cgroup2 rw"), "0::/\n")
    make_cgroup("x", 7, 1000)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "agent-box-new",
        "other",
    ]


@pytest.mark.parametrize(
    ("user", "kinds", "machine", "words"),
    [
        (0, {"pids", "memory"}, True, ["belongs to root"]),
        (0, set(), True, ["how many processes", "all together", "belongs to root"]),
        (1000, set(), True, ["all together"]),
        (1000, {"pids", "memory"}, True, []),
        (1000, {"pids", "memory"}, False, ["not filtered"]),
    ],
)
def test_weaknesses_are_told_with_what_mends_them(
    monkeypatch: pytest.MonkeyPatch, user: int, kinds: set[str], machine: bool, words: list[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    made = Cgroup((), frozenset(kinds))
    monkeypatch.setattr(weaknesses_module, "make_cgroup", lambda *_, **__: made)
    monkeypatch.setattr(weaknesses_module, "known_machine", lambda: machine)
    found = weaknesses()
    assert len(found) == len(words)
    for told, expected in zip(found, words, strict=True):
        assert expected in told
        assert ": " in told
