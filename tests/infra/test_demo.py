"""``make demo`` as a user runs it: it ends green, and whatever happens leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
WITHIN = 600.0

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("live")]


class Demo:
    """A demo in a process of its own, and what it has printed."""

    def __init__(self, folder: Path, printed: Path, *arguments: str) -> None:
        self.printed = printed
        with printed.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "infra.local.demo", "--folder", str(folder), *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.printed.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + WITHIN
        while text not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.1)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=120)


@contextmanager
def demo(folder: Path, printed: Path, *arguments: str) -> Iterator[Demo]:
    """Run a demo, which is ended like by Ctrl-C if the test fails before it has ended."""
    running = Demo(folder, printed, *arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.interrupt()


def left_over(folder: Path) -> list[str]:
    """Return the processes that work in a folder or were told of it."""
    found = []
    for process in psutil.process_iter():
        try:
            told = " ".join([process.cwd(), *process.cmdline(), *process.environ().values()])
        except psutil.Error:
            continue
        if process.pid != os.getpid() and str(folder) in told:
            found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found


def test_one_that_is_interrupted_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with demo(folder, tmp_path / "printed") as running:
        running.wait_for("starts S3")
        while not (folder / "airflow").exists():
            time.sleep(0.1)
            assert running.process.poll() is None, running.text

        assert running.interrupt() == 130

    assert left_over(folder) == []
    assert "Interrupted" in running.text


def test_one_that_follows_an_interrupted_one_ends_green(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with demo(folder, tmp_path / "first") as first:
        first.wait_for("plan         running")
        assert first.interrupt() == 130
    assert left_over(folder) == []

    with demo(folder, tmp_path / "second") as second:
        assert second.process.wait(timeout=WITHIN) == 0, second.text

    assert left_over(folder) == []
    shown = second.text
    for step in ("plan", "implement", "test", "review"):
        assert f"{step:<12} success" in shown
        assert f"STEP#{step}#-1" in shown
        assert f"{step}/-1/1/outcome.json" in shown
    assert " docs/plan.md | " in shown
    assert " version_command/version.py " in shown


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--repository", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--rehearsal", "/nowhere/script.yaml"], "/nowhere/script.yaml: cannot be read"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments: list[str], reason: str, tmp_path: Path) -> None:
    with demo(tmp_path / "demo", tmp_path / "printed", *arguments) as running:
        assert running.process.wait(timeout=60) == 1

    last = running.text.strip().splitlines()[-1]
    assert last.startswith("The demo failed: ")
    assert reason in last
