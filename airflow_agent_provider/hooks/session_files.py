"""What an agent's program has written of its session by now, for it tells sooner than it writes.

The files are the agent's own, so no link is followed and no pipe waited for.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

#: Seconds that a program may take to write down what it has told, and between two looks.
_SETTLE_SECONDS = 2.0
_POLL_SECONDS = 0.02
#: Bytes at the end of a file in which it must stand then.
_TAIL = 1024**2


def settled(files: Callable[[], Iterable[Path]], written: Callable[[bytes], bool]) -> bool:
    """Wait until one of the session's files has what was told; at most two seconds.

    :param files: finds the files; where there are none yet, they are waited for.
    :param written: whether it stands in the end of a file.
    :returns: whether it does.
    """
    end = time.monotonic() + _SETTLE_SECONDS
    while not any(written(_tail(path)) for path in files()):
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def in_one_line(*words: str) -> Callable[[bytes], bool]:
    """Return whether all of ``words`` stand in the same line, for sessions of a line per record.

    :param words: the rarest first.
    """
    first, *others = (word.encode() for word in words)

    def look(content: bytes) -> bool:
        at = content.rfind(first)
        while at >= 0:
            begin = content.rfind(b"\n", 0, at) + 1
            line = content[begin:].partition(b"\n")[0]
            if all(word in line for word in others):
                return True
            at = content.rfind(first, 0, begin)
        return False

    return look


def _tail(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            return b""
        file.seek(max(0, about.st_size - _TAIL))
        return file.read(_TAIL)
