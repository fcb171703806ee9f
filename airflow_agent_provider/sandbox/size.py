"""A watch on how much an agent writes, where no quota of the file system bounds it."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from airflow_agent_provider.agents.failures import AgentFailure, PolicyViolation, Unavailable

#: Seconds between two looks, at least; a look may take a tenth of the time, not more.
_INTERVAL = 2.0
_SHARE = 10
#: What the least file or folder counts, so that a million of empty ones does not count nothing.
_ENTRY_SIZE = 4096
#: What stays free of a file system, of bytes and of files: a twentieth, or this much.
_FREE_SHARE = 20
_FREE_BYTES = 1024**3
_FREE_FILES = 100_000


class SizeWatch:
    """Ends an agent whose folders grow beyond a bound, or that fills the file system.

    The second catches what the first cannot see: files that are open but have no name any more.

    :param folders: what is watched.
    :param limit: bytes by which they may grow together.
    :param end: ends the agent.
    :param interval: seconds between two looks.
    """

    def __init__(
        self, folders: Sequence[Path], limit: int, end: Callable[[], None], interval: float = 0.0
    ) -> None:
        self.violation: AgentFailure | None = None
        self._folders = folders
        self._limit = limit
        self._end = end
        self._interval = interval or _INTERVAL
        self._floors = [_floor(folder) for folder in folders]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="agent size", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Watch no more."""
        self._over.set()

    def _watch(self) -> None:
        started: int | None = None
        pause = 0.0
        while not self._over.wait(pause):
            began = os.times().elapsed
            violation = self._full()
            try:
                total = size(self._folders)
            except OSError as error:
                violation = PolicyViolation(
                    "the agent's folders cannot be looked into, as when they lie in each other so "
                    f"deep that no path leads there: {error.strerror}"
                )
            else:
                started = total if started is None else started
                violation = violation or self._grown(total - started)
            if violation is not None and not self._over.is_set():
                self.violation = violation
                self._end()
                return
            pause = max(self._interval, _SHARE * (os.times().elapsed - began))

    def _grown(self, grown: int) -> AgentFailure | None:
        if grown <= self._limit:
            return None
        return PolicyViolation(
            f"the agent wrote {grown // 1024**2:,} MiB, more than the "
            f"{self._limit // 1024**2:,} MiB that [agents] sandbox_disk allows"
        )

    def _full(self) -> AgentFailure | None:
        for folder, floor in zip(self._folders, self._floors, strict=True):
            free = _free(folder)
            if any(now < least for now, least in zip(free, floor, strict=True)):
                return Unavailable(
                    f"the file system of {folder} is nearly full ({free[0] // 1024**2:,} MiB and "
                    f"{free[1]:,} files free), so the agent was ended; make room on this worker"
                )
        return None


def _free(folder: Path) -> tuple[int, int]:
    """Return how many bytes and files may still be written."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize, status.f_favail


def _floor(folder: Path) -> tuple[int, int]:
    """Return how many bytes and files must stay free, less where there are few from the start."""
    status = os.statvfs(folder)
    size, files = _free(folder)
    share = status.f_blocks * status.f_frsize // _FREE_SHARE
    return min(_FREE_BYTES, share, size // 2), min(_FREE_FILES, status.f_files // _FREE_SHARE,
                                                   files // 2)  # fmt: skip


def size(folders: Sequence[Path]) -> int:
    """Return the bytes on disk of all that lies in ``folders``, following no link.

    A file with several names counts once; and each name counts a little.

    :raises OSError: if there are folders that cannot be looked into.
    """
    total = 0
    shared: set[int] = set()
    pending = [str(folder) for folder in folders]
    while pending:
        for path, status in _entries(pending.pop()):
            total += _ENTRY_SIZE
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
            elif status.st_nlink == 1 or status.st_ino not in shared:
                total += max(0, status.st_blocks * 512 - _ENTRY_SIZE)
                if status.st_nlink > 1:
                    shared.add(status.st_ino)
    return total


def _entries(folder: str) -> list[tuple[str, os.stat_result]]:
    try:
        return _listed(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []  # Gone since it was listed: the agent is at work.
    except PermissionError:
        return _forced(folder)


def _listed(folder: str) -> list[tuple[str, os.stat_result]]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found.append((entry.path, entry.stat(follow_symlinks=False)))
    return found


def _forced(folder: str) -> list[tuple[str, os.stat_result]]:
    """List a folder that was made unreadable, and would hide what is in it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        file = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            way = Path(f"/proc/self/fd/{file}")
            mode = stat.S_IMODE(os.fstat(file).st_mode)
            way.chmod(mode | stat.S_IRUSR | stat.S_IXUSR)
            try:
                return _listed(folder)
            finally:
                way.chmod(mode)
        finally:
            os.close(file)
    return []
