"""A watch on what all processes of a box take together, where no cgroup bounds it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from airflow_agent_provider.agents.failures import AgentFailure, PolicyViolation
from airflow_agent_provider.agents.processes import MARK

#: Seconds between two looks.
_INTERVAL = 1.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
#: Where /proc/PID/stat has them, counted from behind the name
#: (https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html).
_PARENT, _THREADS = 1, 17


class UsageWatch:
    """Ends an agent whose processes take more than they may together.

    A look now and then is no bound: what is taken between two of them is seen too late. So this is
    only for what the kernel does not hold.

    :param mark: by which the box's processes are known.
    :param memory: bytes that they may have; 0 for no bound.
    :param processes: how many processes and threads there may be; 0 for no bound.
    :param end: ends the agent.
    """

    def __init__(self, mark: str, memory: int, processes: int, end: Callable[[], None]) -> None:
        self.violation: AgentFailure | None = None
        self._variable = f"{MARK}={mark}".encode()
        self._memory = memory
        self._processes = processes
        self._end = end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="agent usage", daemon=True)
        if memory or processes:
            self._thread.start()

    def close(self) -> None:
        """Watch no more."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL):
            violation = self._look()
            if violation is not None:
                self.violation = violation
                self._end()
                return

    def _look(self) -> AgentFailure | None:
        members = self._members()
        threads = sum(members.values())
        if self._processes and threads > self._processes:
            return PolicyViolation(
                f"the agent has {threads:,} processes and threads, more than the "
                f"{self._processes:,} that [agents] sandbox_processes allows"
            )
        # What several processes share is in the quick sum many times; the exact one takes longer.
        if not self._memory or sum(map(_resident, members)) <= self._memory:
            return None
        used = sum(map(_proportional, members))
        if used <= self._memory:
            return None
        return PolicyViolation(
            f"the agent's processes take {used // 1024**2:,} MiB together, more than the "
            f"{self._memory // 1024**2:,} MiB that [agents] sandbox_memory allows"
        )

    def _members(self) -> dict[int, int]:
        """Return the box's processes with their numbers of threads.

        They descend from one that has the mark, whatever they have done to their own environment.
        """
        children: dict[int, list[int]] = defaultdict(list)
        threads: dict[int, int] = {}
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The name may hold anything, but nothing after it a bracket.
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                number = int(entry.name)
                threads[number] = int(fields[_THREADS])
                children[int(fields[_PARENT])].append(number)
                if entry.stat().st_uid == os.geteuid() and self._marked(entry):
                    found.append(number)
        members: dict[int, int] = {}
        while found:
            number = found.pop()
            if number not in members:
                members[number] = threads[number]
                found += children[number]
        return members

    def _marked(self, entry: Path) -> bool:
        return self._variable in (entry / "environ").read_bytes().split(b"\0")


def _resident(process: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
    return 0


def _proportional(process: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
