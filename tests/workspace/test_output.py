from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import OutputInvalid
from airflow_agent_provider.workspace.output import read_beneath


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "docs").mkdir(parents=True)
    (folder / "docs/plan.md").write_text("plan\n")
    (tmp_path / "secret.txt").write_text("secret\n")
    (folder / "outside.md").symlink_to(tmp_path / "secret.txt")
    (folder / "inside.md").symlink_to("docs/plan.md")
    (folder / "linked").symlink_to("docs")
    (folder / "away").symlink_to(tmp_path)
    (folder / "empty.md").touch()
    (folder / "large.md").write_bytes(b"x" * 101)
    os.mkfifo(folder / "pipe")
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("x")
    return folder


@pytest.mark.parametrize("path", ["docs/plan.md", "./docs/plan.md", "docs//plan.md"])
def test_a_file_is_read(tree: Path, path: str) -> None:
    assert read_beneath(tree, path, 100) == b"plan\n"


def test_the_limit_is_the_last_that_passes(tree: Path) -> None:
    assert len(read_beneath(tree, "large.md", 101)) == 101


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("docs/other.md", "is missing"),
        ("none/plan.md", "is missing"),
        ("docs/plan.md/x", "is missing: plan.md is a file"),
        ("empty.md", "is empty"),
        ("large.md", "is larger than 100 bytes"),
        ("../secret.txt", "is outside the workspace"),
        ("docs/../../secret.txt", "is outside the workspace"),
        ("/etc/passwd", "is outside the workspace"),
        (".git/config", "is outside the workspace"),
        ("outside.md", "symbolic link outside.md"),
        ("inside.md", "symbolic link inside.md"),
        ("linked/plan.md", "symbolic link linked"),
        ("away/secret.txt", "symbolic link away"),
        ("docs", "is a folder"),
        ("pipe", "is a pipe, socket or device"),
        (".", "names no file"),
        ("", "names no file"),
        ("docs/\0", "names no file"),
    ],
)
def test_anything_else_is_refused_and_told(tree: Path, path: str, words: str) -> None:
    with pytest.raises(OutputInvalid) as caught:
        read_beneath(tree, path, 100)
    assert words in caught.value.reason


def test_a_socket_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(OutputInvalid, match="socket"):
            read_beneath(tree, "socket", 100)


def test_no_file_stays_open(tree: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in ("docs/plan.md", "docs/other.md", "inside.md", "pipe", "none/x"):
        with contextlib.suppress(OutputInvalid):
            read_beneath(tree, path, 100)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_swap_race_leaks_nothing(tree: Path, tmp_path: Path) -> None:
    """The agent exchanges a folder and a link to outside while the output is read."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "plan.md").write_text("secret\n")
    (tree / "real").mkdir()
    (tree / "real/plan.md").write_text("plan\n")
    (tree / "link").symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for name in ("real", "link"):
                (tree / name).rename(tree / "race")
                (tree / "race").rename(tree / name)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(3000):
            with contextlib.suppress(OutputInvalid):
                seen.add(read_beneath(tree, "race/plan.md", 100))
    finally:
        stop.set()
        thread.join()
    assert seen <= {b"plan\n"}
