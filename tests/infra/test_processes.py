"""Processes are ended, all of them, and nobody else's are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from infra.local.processes import (
    MARK,
    RECORD,
    FolderInUse,
    Identity,
    Processes,
    ProcessFailed,
    end_leftovers,
)

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
#: Starts a child in a session of its own, as agents and servers do, and tells its process id.
PARENT = """
import pathlib, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
part = pathlib.Path(sys.argv[1] + ".part")
part.write_text(str(child.pid))
part.rename(sys.argv[1])
time.sleep(600)
"""
#: Owns such a parent until it is killed.
OWNER = """
import pathlib, sys, time
from infra.local.processes import Processes
folder = pathlib.Path(sys.argv[1])
with Processes(folder) as processes:
    seen = folder / "grandchild"
    command = [sys.executable, "-c", sys.argv[2], str(seen)]
    processes.start("parent", command, ready=seen.exists)
    (folder / "ready").touch()
    time.sleep(600)
"""


def _until(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _start_parent(processes: Processes) -> tuple[int, int]:
    seen = processes.folder / "grandchild"
    child = processes.start(
        "parent", [sys.executable, "-c", PARENT, seen], ready=seen.exists, within=30
    )
    return child.pid, int(seen.read_text())


@pytest.fixture
def owner(tmp_path: Path) -> subprocess.Popen[bytes]:
    """Return a process that owns a parent and its child, in the folder ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), PARENT],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert _until((tmp_path / "ready").exists)
    return process


def test_descendants_are_ended_too(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        parent, grandchild = _start_parent(processes)
        assert not _gone(grandchild)

    assert _gone(parent)
    assert _gone(grandchild)
    assert not (tmp_path / RECORD).exists()


def test_orphans_are_ended_too(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        parent, orphan = _start_parent(processes)
        os.kill(parent, signal.SIGKILL)
        assert _until(lambda: _gone(parent))
        assert not _gone(orphan)

    assert _gone(orphan)


def test_an_exception_ends_them(tmp_path: Path) -> None:
    started: list[int] = []

    def interrupted() -> None:
        with Processes(tmp_path) as processes:
            started.extend(_start_parent(processes))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert len(started) == 2
    assert all(_gone(pid) for pid in started)


def test_processes_are_asked_before_they_are_forced(tmp_path: Path) -> None:
    said = tmp_path / "said"
    program = (
        "import pathlib, sys, time\n"
        "print('ready', flush=True)\n"
        "try:\n time.sleep(600)\n"
        f"except KeyboardInterrupt:\n pathlib.Path({str(said)!r}).write_text('interrupted')\n"
    )
    log = tmp_path / "logs" / "polite.log"
    with Processes(tmp_path) as processes:
        processes.start(
            "polite",
            [sys.executable, "-c", program],
            ready=lambda: "ready" in log.read_text(),
        )

    assert said.read_text() == "interrupted"


def test_one_that_is_not_ready_is_ended_and_its_log_is_told(tmp_path: Path) -> None:
    program = "import sys, time; print('waiting for Godot', flush=True); time.sleep(600)"
    with Processes(tmp_path) as processes:
        log = tmp_path / "logs" / "godot.log"
        seen: list[str] = []

        def ready() -> bool:
            seen.append(log.read_text())
            return False

        with pytest.raises(ProcessFailed, match=r"(?s)godot was not ready.*waiting for Godot"):
            processes.start("godot", [sys.executable, "-c", program], ready=ready, within=3)
        assert seen
        recorded = json.loads((tmp_path / RECORD).read_text())["processes"]
        assert [_gone(each["pid"]) for each in recorded] == [True]


def test_one_that_ends_early_is_told_at_once(tmp_path: Path) -> None:
    program = "import sys; sys.exit('no such port')"
    with (
        Processes(tmp_path) as processes,
        pytest.raises(ProcessFailed, match=r"(?s)exit code 1 .*no such port"),
    ):
        processes.start("server", [sys.executable, "-c", program], ready=lambda: False)


def test_a_killed_owner_leaves_nothing(tmp_path: Path, owner: subprocess.Popen[bytes]) -> None:
    parent = json.loads((tmp_path / RECORD).read_text())["processes"][0]["pid"]
    grandchild = int((tmp_path / "grandchild").read_text())

    owner.kill()
    owner.wait()

    assert _until(lambda: _gone(parent) and _gone(grandchild))


def test_leftovers_of_a_killed_owner_and_guard_are_ended(
    tmp_path: Path, owner: subprocess.Popen[bytes]
) -> None:
    parent = json.loads((tmp_path / RECORD).read_text())["processes"][0]["pid"]
    grandchild = int((tmp_path / "grandchild").read_text())
    children = psutil.Process(owner.pid).children()
    (guard,) = [child for child in children if child.pid != parent]
    guard.kill()
    owner.kill()
    owner.wait()
    assert not _gone(parent)

    assert end_leftovers(tmp_path) == ["parent"]

    assert _gone(parent)
    assert _gone(grandchild)
    assert end_leftovers(tmp_path) == []


def test_a_living_owner_keeps_its_folder(tmp_path: Path, owner: subprocess.Popen[bytes]) -> None:
    try:
        with pytest.raises(FolderInUse, match="is in use"):
            end_leftovers(tmp_path, wait=0.1)
    finally:
        owner.send_signal(signal.SIGINT)
        owner.wait(timeout=60)
    assert _gone(int((tmp_path / "grandchild").read_text()))


def test_a_process_id_that_was_used_again_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            started = psutil.Process(stranger.pid).create_time()
            process = {"name": "ours", "pid": stranger.pid, "started": started - 100}
            record = {"mark": "ours", "processes": [process]}
            (tmp_path / RECORD).write_text(json.dumps(record))

            assert Identity("ours", stranger.pid, started).find() is not None
            assert end_leftovers(tmp_path) == []

            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_the_mark_of_another_owner_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: "theirs"}) as stranger:
        try:
            (tmp_path / RECORD).write_text(json.dumps({"mark": "ours", "processes": []}))
            end_leftovers(tmp_path)
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_record_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("{")

    with pytest.raises(ProcessFailed, match=RECORD):
        end_leftovers(tmp_path)
