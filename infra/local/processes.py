"""Child processes with one owner that ends them, whatever becomes of it.

Processes are told apart by a mark in their environment and by process id plus start time, never by
name, so that nothing of anybody else is signalled, not even after an id was used again. A small
guard process ends what is left if the owner is killed; what outlives both is ended by the next
owner of the same folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

#: Names the owner in the environment of each of its processes, and of theirs.
MARK = "LOCAL_PROCESSES"
RECORD = "processes.json"
LOCK = "processes.lock"
POLL = 0.05
# Signal, seconds to end in, and whether it goes to the topmost processes alone: those end their own
# children in order.
_STEPS = ((signal.SIGINT, 20.0, True), (signal.SIGTERM, 10.0, False), (signal.SIGKILL, 5.0, False))
# Seconds that children get to follow their parent.
_CHILDREN_FOLLOW = 2.0
# Two readings of one start time differ by the resolution of the kernel's clock.
_SAME_START = 1.0


class ProcessFailed(RuntimeError):
    """A process ended, or was not ready in time; the text has the end of its log."""


class FolderInUse(RuntimeError):
    """Another owner has processes in the folder."""


@dataclass(frozen=True)
class Identity:
    """One process, also after its id was given to another one.

    :param name: what it is called in messages and log files.
    :param pid: its process id.
    :param started: seconds since the epoch when it started.
    """

    name: str
    pid: int
    started: float

    def find(self) -> psutil.Process | None:
        """Return the process, or None if it has ended."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < _SAME_START
        except psutil.NoSuchProcess:
            return None
        return process if same and _lives(process) else None


@dataclass(frozen=True)
class Child:
    """A process that was started.

    :param identity: its name, id and start time.
    :param log: the file with its output.
    """

    identity: Identity
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.identity.pid


def tail(path: Path, lines: int = 30) -> str:
    """Return the last lines of a log, or an empty text if there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


class Processes:
    """Starts processes and ends them all when the context is left.

    :param folder: the owner's folder, with the record of its processes and their logs; one owner
        at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = uuid.uuid4().hex
        self._children: list[tuple[Child, subprocess.Popen[bytes]]] = []
        self._lock: IO[str] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Take the folder, and end what an owner that was killed left running.

        :raises FolderInUse: if a living owner has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            lock = undo.enter_context(_lock(self.folder, wait=5.0))
            _end_recorded(self.folder)
            self._write_record()
            self._guard = subprocess.Popen(
                [sys.executable, str(Path(__file__).absolute()), str(self.folder)],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
            self._lock = lock
            undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready: Callable[[], bool] | None = None,
        within: float = 60.0,
    ) -> Child:
        """Start a process, and wait until it is ready.

        :param name: what it is called; its output goes to ``logs/<name>.log`` of the folder.
        :param env: its whole environment; None takes this process's own.
        :param ready: tells whether it is ready; None does not wait.
        :param within: seconds until it must be ready.
        :raises ProcessFailed: if it ends or is not ready in time; it is ended then.
        """
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [str(part) for part in command],
                # Process titles are kept out of the environment, which holds the mark.
                env={**(os.environ if env is None else env), MARK: self._mark, "SPT_NOENV": "1"},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # The terminal's Ctrl-C reaches the owner alone, which ends them in order.
                start_new_session=True,
            )
        child = Child(_identify(name, popen.pid), log)
        self._children.append((child, popen))
        self._write_record()
        if ready is not None:
            self._await(child, popen, ready, within)
        return child

    def running(self, child: Child) -> bool:
        """Return whether the process is still there."""
        return child.identity.find() is not None

    def end(self) -> None:
        """End all processes and theirs: the last one started first. Harmless when repeated.

        :raises ProcessFailed: if one of them cannot be ended.
        """
        if self._lock is None:
            return
        for child, _ in reversed(self._children):
            _end([child.identity], None)
        _end([child.identity for child, _ in self._children], self._mark)
        for _, popen in self._children:
            popen.wait(timeout=5)
        self._children.clear()
        (self.folder / RECORD).unlink(missing_ok=True)
        self._lock.close()
        self._lock = None
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait(timeout=10)

    def _await(
        self,
        child: Child,
        popen: subprocess.Popen[bytes],
        ready: Callable[[], bool],
        within: float,
    ) -> None:
        deadline = time.monotonic() + within
        problem = f"was not ready within {within:g} s"
        while time.monotonic() < deadline:
            if popen.poll() is not None:
                problem = f"ended with exit code {popen.returncode} before it was ready"
                break
            if ready():
                return
            time.sleep(POLL)
        _end([child.identity], None)
        raise ProcessFailed(
            f"{child.identity.name} {problem}; the end of its log {child.log}:\n{tail(child.log)}"
        )

    def _write_record(self) -> None:
        values = {
            "mark": self._mark,
            "processes": [asdict(child.identity) for child, _ in self._children],
        }
        new = self.folder / f"{RECORD}.new"
        new.write_text(json.dumps(values, indent=1))
        new.replace(self.folder / RECORD)


def end_leftovers(folder: Path, wait: float = 5.0) -> list[str]:
    """End what an owner that was killed left running; return the names of the processes.

    :param folder: the owner's folder.
    :param wait: seconds to wait for somebody else who is ending them.
    :raises FolderInUse: if the owner lives.
    """
    if not folder.is_dir():
        return []
    with _lock(folder, wait):
        return _end_recorded(folder)


def _lock(folder: Path, wait: float) -> IO[str]:
    # The kernel drops the lock with its owner, so it never outlives one that was killed.
    lock = (folder / LOCK).open("a")
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.close()
                raise FolderInUse(
                    f"{folder} is in use by another process; end that one first, or take another "
                    "folder"
                ) from None
            time.sleep(POLL)
        else:
            return lock


def _end_recorded(folder: Path) -> list[str]:
    record = folder / RECORD
    try:
        values = json.loads(record.read_text())
        identities = [Identity(**process) for process in values["processes"]]
        mark = str(values["mark"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ProcessFailed(
            f"{record} cannot be read ({error}); see that nothing of it is running, and delete it"
        ) from error
    names = [identity.name for identity in identities if identity.find()]
    _end(identities, mark)
    record.unlink()
    return names


def _end(identities: Sequence[Identity], mark: str | None) -> None:
    """End processes and their descendants: first by asking them, in the end by force.

    :param mark: also end the processes that carry this mark, such as orphans.
    """
    for number, seconds, asks in _STEPS:
        found = _find(identities, mark)
        targets = _topmost(found) if asks else found
        for process in targets:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        ended = _wait(targets, seconds) and _wait(found, _CHILDREN_FOLLOW)
        if ended and not _find(identities, mark):
            return
    left = ", ".join(f"{process.pid}" for process in _find(identities, mark))
    if left:
        raise ProcessFailed(f"processes {left} cannot be ended")


def _find(identities: Iterable[Identity], mark: str | None) -> list[psutil.Process]:
    found = {process for identity in identities if (process := identity.find()) is not None}
    if mark is not None:
        found |= {process for process in psutil.process_iter() if _has_mark(process, mark)}
    for process in list(found):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= set(process.children(recursive=True))
    found.discard(psutil.Process())
    return [process for process in found if _lives(process)]


def _topmost(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    ids = {process.pid for process in processes}
    top = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.ppid() not in ids:
                top.append(process)
    return top


def _wait(processes: Sequence[psutil.Process], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(_lives(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(process.environ().get(MARK) == mark)
    except (psutil.Error, OSError):
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _identify(name: str, pid: int) -> Identity:
    try:
        return Identity(name, pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return Identity(name, pid, time.time())


def _guard(folder: Path) -> None:
    """Wait for the owner's end, then end what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    # Somebody else who has the folder by now has ended the leftovers already.
    with contextlib.suppress(FolderInUse):
        end_leftovers(folder)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
