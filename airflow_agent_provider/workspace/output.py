"""Reads a file that an agent left, which may be anything but that file.

Measured: of readers that check first and open after, links swapped in between leak other files.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from airflow_agent_provider.agents.failures import OutputInvalid

_CHUNK = 1024 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO waits for a writer for ever.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def read_beneath(
    root: Path, path: str, max_bytes: int, *, what: str = "output", empty: bool = False
) -> bytes:
    """Return the content of a file below ``root``, never following a link.

    Every folder on the way is opened from the one above it, so nothing can be exchanged between a
    check and its use.

    :param root: the folder.
    :param path: the file's path below it.
    :param max_bytes: the most that it may hold.
    :param what: what the file is, for the error.
    :param empty: whether it may be empty.
    :raises OutputInvalid: saying which, if the file is missing, empty, too large, outside the
        folder, a link, or no regular file.
    """
    told = f"{what} {path}"
    file = open_beneath(root, path, told)
    try:
        return _read(file, told, max_bytes, empty)
    finally:
        os.close(file)


def open_beneath(root: Path, path: str, told: str) -> int:
    """Open for reading what is at ``path`` below a folder, following no link; return its number.

    It may be anything but a link, so the caller has to look.

    :param told: what the error calls it.
    :raises OutputInvalid: if there is nothing that can be opened.
    """
    folder = os.open(root, _FOLDER)
    try:
        *folders, name = _parts(path, told)
        for part in folders:
            deeper = _open(folder, part, _FOLDER, told)
            os.close(folder)
            folder = deeper
        return _open(folder, name, _FILE, told)
    finally:
        os.close(folder)


def _parts(path: str, told: str) -> tuple[str, ...]:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or ".git" in pure.parts:
        raise OutputInvalid(
            f"{told} is outside the workspace; give a path below it, as docs/plan.md"
        )
    if not pure.parts or "\0" in path:
        raise OutputInvalid(f"{told!r} names no file")
    return pure.parts


def _open(folder: int, name: str, flags: int, told: str) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        raise OutputInvalid(f"{told} is missing: the agent did not write it") from None
    except OSError as error:
        raise OutputInvalid(f"{told} {_what_is_wrong(folder, name, error)}") from error


def _what_is_wrong(folder: int, name: str, error: OSError) -> str:
    # Only for the words; what is read was decided by open itself.
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except OSError:
        mode = 0
    if stat.S_ISLNK(mode):
        return f"is or goes through the symbolic link {name}; the file itself is needed"
    if stat.S_ISREG(mode) and isinstance(error, NotADirectoryError):
        return f"is missing: {name} is a file, not a folder"
    return f"cannot be read: {error.strerror}"


def _read(file: int, told: str, max_bytes: int, empty: bool) -> bytes:
    status = os.fstat(file)
    if stat.S_ISDIR(status.st_mode):
        raise OutputInvalid(f"{told} is a folder; a file is needed")
    if not stat.S_ISREG(status.st_mode):
        raise OutputInvalid(f"{told} is a pipe, socket or device; a file is needed")
    if status.st_size == 0 and not empty:
        raise OutputInvalid(f"{told} is empty")
    content = bytearray()
    while len(content) <= max_bytes and (chunk := os.read(file, _CHUNK)):
        content += chunk
    if len(content) > max_bytes:
        raise OutputInvalid(f"{told} is larger than {max_bytes:,} bytes")
    return bytes(content)
