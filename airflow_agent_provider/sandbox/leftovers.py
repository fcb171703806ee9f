"""Takes from the files that an agent leaves what would give others the worker's rights."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

_PRIVILEGES = stat.S_ISUID | stat.S_ISGID


def take_privileges(folders: Iterable[Path]) -> None:
    """Take set-user-id and set-group-id from all files in ``folders``, where nobody writes now.

    Whoever runs such a file has the rights of its owner, who is the worker's user: root, maybe. Who
    gets here at all is decided by the folder above, which is the worker's own.

    :param folders: what an agent could write.
    """
    pending = [str(folder) for folder in folders]
    while pending:
        # Unreadable, or too deep for a path: removed with the whole folder, as all of it.
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                _look_at(entry, pending)


def _look_at(entry: os.DirEntry[str], pending: list[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        pending.append(entry.path)
        return
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISREG(mode) and mode & _PRIVILEGES:
        Path(entry.path).chmod(stat.S_IMODE(mode) & ~_PRIVILEGES)
