"""The most memory that a program and all that it started held at a time."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

#: Seconds between two looks.
_INTERVAL = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """Watches this process's children while it is entered. A context manager.

    A tree is a child with all that it started; the greatest one counts, so that git's calls beside
    the agent do not. What processes share counts for each of them.

    :ivar bytes: the resident memory that the greatest tree held, the sum over its processes.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        own = _command(os.getpid())
        while not self._over.wait(_INTERVAL):
            children, resident = _processes()
            # A child that still has this process's command line is about to become another
            # program, and its memory is this process's until then.
            roots = [pid for pid in children[os.getpid()] if _command(pid) != own]
            for root in roots:
                self.bytes = max(self.bytes, sum(resident[pid] for pid in _tree(root, children)))


def _tree(root: int, children: Mapping[int, list[int]]) -> Iterator[int]:
    yield root
    for child in children.get(root, ()):
        yield from _tree(child, children)


def _processes() -> tuple[dict[int, list[int]], dict[int, int]]:
    """Return the children of all processes, and the bytes of memory that each has."""
    children: dict[int, list[int]] = defaultdict(list)
    resident: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # What follows the name, which may hold anything; see proc_pid_stat(5).
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                children[int(fields[1])].append(int(entry.name))
                resident[int(entry.name)] = int(fields[21]) * _PAGE
    return children, resident


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
