"""The box that our own git runs in."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_agent_provider.sandbox import git_box as git_box_module
from airflow_agent_provider.sandbox.git_box import GitBox

pytestmark = pytest.mark.integration
SECONDS = 60.0


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    return folder


@pytest.fixture
def box(tree: Path) -> Iterator[GitBox]:
    made = GitBox([tree])
    yield made
    made.close()


def run(
    box: GitBox, cwd: Path, *command: str, stdin: bytes = b"", timeout: float = 30, **env: str
) -> subprocess.CompletedProcess[bytes]:
    return box.run(command, cwd=cwd, env=env, stdin=stdin, timeout=timeout)


def first_process(box: GitBox) -> int:
    running = box._running
    assert running is not None
    return running.process.pid


def gone(process: int, seconds: float = SECONDS) -> bool:
    end = time.monotonic() + seconds
    while Path(f"/proc/{process}").exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_commands_give_what_they_would_outside(box: GitBox, tree: Path) -> None:
    done = run(box, tree, "sh", "-c", "cat; echo $X >&2; pwd; exit 3", stdin=b"in\n", X="two words")
    assert done.returncode == 3
    assert done.stdout == f"in\n{tree}\n".encode()
    assert done.stderr == b"two words\n"
    assert run(box, tree, "sh", "-c", "kill -BUS $$").returncode == -signal.SIGBUS
    assert run(box, tree, "printf", "%s|", "", "a b", "new\nline", "\udcff").stdout == (
        b"|a b|new\nline|\xff|"
    )
    assert b"git version" in run(box, tree, "git", "version").stdout


def test_one_box_serves_all_of_them(box: GitBox, tree: Path) -> None:
    pids = {run(box, tree, "sh", "-c", "echo $PPID").stdout for _ in range(5)}
    process = first_process(box)
    assert len(pids) == 1
    run(box, tree, "true")
    assert first_process(box) == process


def test_much_in_both_directions(box: GitBox, tree: Path) -> None:
    content = os.urandom(20 * 1024**2)
    done = run(box, tree, "sh", "-c", "tee /dev/stderr", stdin=content)
    assert (done.stdout, done.stderr) == (content, content)


def test_nothing_of_the_worker_is_inside(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SECRET", "canary-4711")
    (tmp_path / "secret.txt").write_text("canary-4711")
    (tmp_path / "objects").mkdir()
    (tree / "config").write_text("mine")
    box = GitBox([tree], [tree / "config", tmp_path / "objects"])
    try:
        script = (
            f"env; cat /proc/*/environ {tmp_path}/secret.txt; echo; id -u; "
            "cat /proc/net/dev | wc -l; ls -l /proc/self/fd | wc -l; touch a; "
            f"touch {tmp_path}/objects/x config; echo x > config; rm -f config; "
            f"touch /etc/x {tmp_path}/y; ls / /tmp; true"
        )
        done = run(box, tree, "sh", "-c", script)
    finally:
        box.close()
    assert b"canary" not in done.stdout + done.stderr
    assert (tree / "a").exists()
    assert (tree / "config").read_text() == "mine"
    assert list((tmp_path / "objects").iterdir()) == []
    assert not (tmp_path / "y").exists()
    lines = done.stdout.decode().splitlines()
    place = lines.index("1000")
    # Loopback alone, and a command's own streams alone.
    assert lines[place + 1 : place + 3] == ["3", "5"]
    assert "HOME=/tmp" in lines


def test_a_command_that_takes_too_long_ends_with_its_children(box: GitBox, tree: Path) -> None:
    script = "trap '' TERM; (sleep 3; touch alive) & sleep 600"
    started = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run(box, tree, "sh", "-c", script, timeout=0.5)
    assert time.monotonic() - started < SECONDS
    process = first_process(box)
    assert run(box, tree, "echo", "on").stdout == b"on\n"
    assert first_process(box) == process
    time.sleep(max(0.0, started + 3.5 - time.monotonic()))
    assert not (tree / "alive").exists()


def test_what_cannot_be_started_says_so(box: GitBox, tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        run(box, tree, "no-such-program")
    with pytest.raises(FileNotFoundError, match="gone"):
        run(box, tree / "gone", "true")
    with pytest.raises(ValueError, match="null byte"):
        run(box, tree, "echo", "a\0b")
    assert run(box, tree, "true").returncode == 0


def test_a_box_that_was_killed_is_made_anew(box: GitBox, tree: Path) -> None:
    run(box, tree, "true")
    process = first_process(box)
    os.kill(process, signal.SIGKILL)
    end = time.monotonic() + SECONDS
    running = box._running
    assert running is not None
    while running.process.poll() is None:
        assert time.monotonic() < end
    assert run(box, tree, "echo", "again").stdout == b"again\n"
    assert first_process(box) != process


def test_a_box_that_ends_in_mid_command_is_a_failure_and_no_wait(box: GitBox, tree: Path) -> None:
    started = time.monotonic()
    with pytest.raises(OSError, match="the box of git has ended"):
        run(box, tree, "sh", "-c", "kill -9 $PPID; sleep 600", timeout=600)
    assert time.monotonic() - started < SECONDS
    assert run(box, tree, "echo", "again").stdout == b"again\n"


def test_a_box_that_gives_no_answer_is_ended(
    box: GitBox, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_box_module, "_GRACE", 0.5)
    process = []
    with pytest.raises(OSError, match="does not answer"):
        run(box, tree, "sh", "-c", "kill -STOP $PPID", timeout=0.5)
    assert box._running is None
    assert process == []
    assert run(box, tree, "echo", "again").stdout == b"again\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff" * 21,
        b"\x00\x00\x00\x00\x00" + (2**62).to_bytes(8, "big") + bytes(8),
        b"short",
    ],
)
def test_what_the_box_says_is_not_believed(
    tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bytes
) -> None:
    """As one in which something else than our script answers."""
    stand_in = tmp_path / "serve.py"
    stand_in.write_text(
        "import sys\n"
        f"sys.stdout.buffer.write(bytes(21) + {answer!r}); sys.stdout.flush()\n"
        "sys.stdin.read()"
    )
    monkeypatch.setattr(git_box_module, "__file__", str(tmp_path / "git_box.py"))
    monkeypatch.setattr(git_box_module, "_GRACE", 0.5)
    box = GitBox([tree])
    with pytest.raises(OSError, match="the box of git"):
        run(box, tree, "true", timeout=0.5)
    box.close()


def test_where_there_is_no_box_it_does_not_start(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "bin/bwrap"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\necho 'bwrap: No permissions' >&2\nexit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(stand_in.parent), prepend=os.pathsep)
    box = GitBox([tree])
    assert box.starts() is False
    with pytest.raises(OSError, match="does not start: bwrap: No permissions"):
        run(box, tree, "true")
    monkeypatch.setenv("PATH", "/nowhere")
    assert GitBox([tree]).starts() is False


def test_it_ends_with_its_owner_however_that_ends(tree: Path) -> None:
    closed, forgotten = GitBox([tree]), GitBox([tree])
    processes = []
    for box in (closed, forgotten):
        run(box, tree, "true")
        processes.append(first_process(box))
    closed.close()
    closed.close()
    assert gone(processes[0])
    del box, forgotten
    gc.collect()
    assert gone(processes[1])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, 0])
def test_it_ends_with_the_worker(tree: Path, number: int) -> None:
    driver = (
        "import sys, time; from pathlib import Path\n"
        "from airflow_agent_provider.sandbox.git_box import GitBox\n"
        "tree = Path(sys.argv[1]); box = GitBox([tree])\n"
        "box.run(['true'], cwd=tree, env={}, stdin=b'', timeout=30)\n"
        "print(box._running.process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", driver, str(tree)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    process = int(worker.stdout.readline())
    if number:
        worker.send_signal(number)
    worker.communicate(timeout=SECONDS)
    assert gone(process)


def test_the_thread_of_the_first_command_may_end(box: GitBox, tree: Path) -> None:
    """The box ends with the thread that started it, which must not be the caller's."""
    done: list[Callable[[], object]] = []
    thread = threading.Thread(target=lambda: done.append(run(box, tree, "true")))  # type: ignore[arg-type]
    thread.start()
    thread.join()
    process = first_process(box)
    time.sleep(0.3)
    assert run(box, tree, "echo", "on").stdout == b"on\n"
    assert first_process(box) == process


def test_threads_take_turns(box: GitBox, tree: Path) -> None:
    found: list[bytes] = []

    def work(number: int) -> None:
        for _ in range(10):
            found.append(run(box, tree, "echo", str(number), X=str(number)).stdout)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert sorted(found) == sorted(f"{n}\n".encode() for n in range(4) for _ in range(10))
