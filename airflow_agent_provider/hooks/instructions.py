"""A project's own instructions for agents, read outside of the box: as hostile data."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

#: Bytes of them that are read.
_SIZE = 32 * 1024


def read_instructions(workspace: Path, *names: str) -> bytes:
    """Return the text of the first of ``names`` that is a file of ``workspace``; empty for none."""
    for name in names:
        # An agent may have put a link or a pipe there.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with contextlib.suppress(OSError):
            descriptor = os.open(workspace / name, flags)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return os.read(descriptor, _SIZE)
            finally:
                os.close(descriptor)
    return b""
