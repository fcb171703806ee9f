"""A watch on how much an agent writes, where no quota of the file system bounds it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from airflow_agent_provider.agents.failures import AgentFailure, PolicyViolation

#: Seconds between two looks, at least; a look may take a tenth of the time, not more.
_INTERVAL = 2.0
_SHARE = 10


class SizeWatch:
    """Ends an agent whose folders grow beyond a bound.

    :param folders: what is watched.
    :param limit: bytes by which they may grow together.
    :param end: ends the agent.
    """

    def __init__(
        self, folders: Sequence[Path], limit: int, end: Callable[[], None], interval: float = 0.0
    ) -> None:
        self.violation: AgentFailure | None = None
        self._folders = folders
        self._limit = limit
        self._end = end
        self._interval = interval or _INTERVAL
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="agent size", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Watch no more."""
        self._over.set()

    def _watch(self) -> None:
        started = size(self._folders)
        pause = self._interval
        while not self._over.wait(pause):
            began = os.times().elapsed
            grown = size(self._folders) - started
            if grown > self._limit and not self._over.is_set():
                self.violation = PolicyViolation(
                    f"the agent wrote {grown // 1024**2:,} MiB, more than the "
                    f"{self._limit // 1024**2:,} MiB that [agents] sandbox_disk allows"
                )
                self._end()
                return
            pause = max(self._interval, _SHARE * (os.times().elapsed - began))


def size(folders: Sequence[Path]) -> int:
    """Return the bytes on disk of all that lies in ``folders``, following no link."""
    total = 0
    pending = [str(folder) for folder in folders]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except OSError:
            continue  # Gone since it was listed: the agent is at work.
    return total
