"""The watch on what an agent writes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_agent_provider.agents.contract import AgentTask
from airflow_agent_provider.agents.failures import PolicyViolation, Unavailable
from airflow_agent_provider.sandbox import size as size_module
from airflow_agent_provider.sandbox.box import Program, open_box
from airflow_agent_provider.sandbox.size import SizeWatch, size

from .conftest import SECONDS, confined

pytestmark = pytest.mark.integration
MIB = 1024**2


def write(path: Path, megabytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(megabytes * MIB))


def eventually(look: Callable[[], object], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.02)


def test_what_is_there_already_does_not_count(tmp_path: Path) -> None:
    write(tmp_path / "before", 5)
    ended = threading.Event()
    watch = SizeWatch([tmp_path], 3 * MIB, ended.set, interval=0.05)
    time.sleep(0.5)
    write(tmp_path / "a/b/c", 2)
    time.sleep(0.5)
    assert not ended.is_set()
    write(tmp_path / "a/d", 2)
    assert ended.wait(SECONDS)
    assert isinstance(watch.violation, PolicyViolation)
    assert "the 3 MiB that [agents] sandbox_disk allows" in watch.violation.reason


def test_a_closed_watch_ends_nobody(tmp_path: Path) -> None:
    ended = threading.Event()
    watch = SizeWatch([tmp_path], MIB, ended.set, interval=0.05)
    watch.close()
    write(tmp_path / "a", 3)
    time.sleep(0.5)
    assert not ended.is_set()
    assert watch.violation is None


def test_links_are_not_followed_and_holes_and_second_names_cost_nothing(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write(tmp_path / "outside" / "big", 4)
    tree.mkdir()
    before = size([tree])
    (tree / "folder").symlink_to(tmp_path / "outside")
    (tree / "file").symlink_to(tmp_path / "outside" / "big")
    with (tree / "sparse").open("wb") as file:
        file.truncate(100 * MIB)
    write(tree / "a", 1)
    for number in range(20):
        (tree / f"same{number}").hardlink_to(tree / "a")
    assert MIB <= size([tree]) - before < 1.2 * MIB


def test_many_empty_files_count(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}").touch()
    assert size([tmp_path]) >= 1000 * 4096


def test_files_that_go_while_it_looks_hide_nothing(tmp_path: Path) -> None:
    """An agent makes and removes files all the time, so that a look fails at one of them."""
    write(tmp_path / "zzz", 4)
    for number in range(200):
        (tmp_path / f"{number}").touch()
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(200):
                (tmp_path / f"{number}").unlink(missing_ok=True)
                (tmp_path / f"{number}").touch()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert min(size([tmp_path]) for _ in range(30)) >= 4 * MIB
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("mode", [0o300, 0o400, 0o000])
def test_a_folder_made_unreadable_hides_nothing_and_stays_so(tmp_path: Path, mode: int) -> None:
    """Of an ordinary user; root reads everything."""
    write(tmp_path / "hidden" / "big", 4)
    (tmp_path / "hidden").chmod(mode)
    try:
        assert size([tmp_path]) >= 4 * MIB
        assert (tmp_path / "hidden").stat().st_mode & 0o777 == mode
    finally:
        (tmp_path / "hidden").chmod(0o700)


def test_folders_too_deep_to_look_into_are_a_violation(tmp_path: Path) -> None:
    ended = threading.Event()
    watch = SizeWatch([tmp_path], 10 * MIB, ended.set, interval=0.05)
    nest = "import os\nfor _ in range(600): os.mkdir('deep-folder'); os.chdir('deep-folder')"
    subprocess.run([sys.executable, "-c", nest], cwd=tmp_path, check=True, timeout=SECONDS)
    assert ended.wait(SECONDS)
    assert isinstance(watch.violation, PolicyViolation)
    assert "so deep" in watch.violation.reason
    subprocess.run(["rm", "-rf", str(tmp_path / "deep-folder")], check=True)


def test_a_file_system_that_gets_full_ends_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever fills it: files without a name are in no folder, and are seen here alone."""
    free = [10 * 1024**3]
    monkeypatch.setattr(size_module, "_free", lambda folder: (free[0], 10**6))
    ended = threading.Event()
    watch = SizeWatch([tmp_path], 100 * MIB, ended.set, interval=0.05)
    time.sleep(0.3)
    assert not ended.is_set()
    free[0] = 1024
    assert ended.wait(SECONDS)
    assert isinstance(watch.violation, Unavailable)
    assert "nearly full" in watch.violation.reason


def test_where_there_is_little_room_from_the_start_half_of_it_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size_module, "_free", lambda folder: (1000, 50))
    assert size_module._floor(tmp_path) == (500, 25)


@pytest.mark.parametrize("where", [".", "$HOME", "$TMPDIR"])
def test_an_agent_that_writes_too_much_is_ended(
    task: AgentTask, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(size_module, "_INTERVAL", 0.1)
    task = confined(task, disk=20 * MIB)
    script = (
        f"i=0; while [ $i -lt 500 ]; do head -c 1m /dev/urandom > {where}/$i; sleep 0.02;"
        "i=$((i+1)); done; echo through"
    )
    with open_box(task, Program(("/bin/sh", "-c", script))) as box:
        done = subprocess.run([str(box.wrapper)], capture_output=True, timeout=SECONDS)
        eventually(lambda: box.violation)
        assert done.returncode != 0
        assert b"through" not in done.stdout
        assert isinstance(box.violation, PolicyViolation)
