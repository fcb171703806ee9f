"""A lock on a file, between the processes of one machine."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from airflow_agent_provider.agents.failures import Unavailable

_POLL = 0.05


@contextlib.contextmanager
def file_lock(path: Path, *, wait: float, what: str) -> Iterator[None]:
    """Hold the lock on ``path`` inside the context; the kernel frees it if the process dies.

    :param path: the lock file; made if missing, and never removed.
    :param wait: seconds to wait for another process.
    :param what: what is locked, for the error.
    :raises Unavailable: if another process holds it for all that time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Unavailable(
                        f"another process has worked on {what} for more than {wait:g} s "
                        f"(lock file {path})"
                    ) from None
                time.sleep(_POLL)
        yield
