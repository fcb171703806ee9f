"""A folder of a box's own, outside of what its program sees, and closed to other users."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

#: Not TMPDIR: the path of a unix socket has 107 characters at most.
_PARENT = Path("/tmp")
_PREFIX = "agent-box-"
#: Seconds that a folder is old before anybody asks whether its worker still lives.
_YOUNG = 3600.0


class PrivateFolder:
    """A folder in /tmp that goes with its owner, or with a later one if the owner is killed.

    :ivar path: the folder, for this user alone.
    """

    def __init__(self) -> None:
        _sweep()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PARENT))
        # The kernel lets go of it when the worker dies.
        self._lock: int | None = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove it; harmless a second time."""
        shutil.rmtree(self.path, ignore_errors=True)
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def _sweep() -> None:
    for left in _PARENT.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            folder = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                status = os.fstat(folder)
                if status.st_uid == os.geteuid() and time.time() - status.st_mtime > _YOUNG:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(folder)
