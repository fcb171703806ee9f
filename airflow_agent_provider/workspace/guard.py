"""Holds a git directory of ours to what we made of it, and reads and writes files of it.

Git runs in a box that may write to the directory; if anything of an agent's ever ran in there, it
could leave settings that the next git outside would follow, and links for us to follow.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from airflow_agent_provider.agents.failures import PolicyViolation

#: What git would follow to settings or objects of others; none of it is ever in ours.
_STRANGE = ("commondir", "config.worktree", "hooks", "worktrees", "modules", "shallow",
            "info/grafts", "objects/info/http-alternates")  # fmt: skip
#: Files that say what git does, which stay as we wrote them.
_KEPT = ("config", "objects/info/alternates")
_CHUNK = 1024 * 1024


class GitGuard:
    """Knows what a git directory was like when it was made.

    :param git_dir: the directory, new and untouched.
    """

    def __init__(self, git_dir: Path) -> None:
        self._git_dir = git_dir
        self._kept = {name: (git_dir / name).read_bytes() for name in _KEPT}

    def check(self) -> None:
        """Make sure that git can be run on the directory with credentials.

        :raises PolicyViolation: if anything is in it that is not of our making.
        """
        for path in _strange_files(self._git_dir):
            raise self._violation(path)
        for name in _STRANGE:
            if os.path.lexists(self._git_dir / name):
                raise self._violation(self._git_dir / name)
        for name, content in self._kept.items():
            path = self._git_dir / name
            if not path.exists() or path.read_bytes() != content:
                raise self._violation(path)

    def _violation(self, path: Path) -> PolicyViolation:
        return PolicyViolation(
            f"{path.relative_to(self._git_dir)} in the workspace's own git directory is not of our "
            "making: something that an agent prepared has run there, and nothing is pushed from it"
        )


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, following no link at either end.

    :raises OSError: if one of them is no file.
    """
    with (
        os.fdopen(_opened(source, os.O_RDONLY), "rb") as here,
        os.fdopen(_opened(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as there,
    ):
        while piece := here.read(_CHUNK):
            there.write(piece)


def append_file(path: Path, content: bytes) -> None:
    """Append to a file, following no link; it and its folder are made if missing."""
    path.parent.mkdir(exist_ok=True)
    if path.parent.is_symlink():
        raise OSError(f"{path.parent} is a link")
    with os.fdopen(_opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as file:
        file.write(content)


def _opened(path: Path, flags: int) -> int:
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{path} is no file")
    return file


def _strange_files(folder: Path) -> list[Path]:
    """Return what is neither a folder nor a file."""
    found = []
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    found.append(Path(entry.path))
    return found
