"""The content of files that git-lfs manages, for a workspace to read.

In git, such a file is a pointer of three lines. The objects are fetched by the program ``git-lfs``,
outside of the box, into the mirror, and copied into the tree before any agent is there. No filter
of git's runs. To our git, these files are unchanged whatever becomes of them, so that no content
ends in a commit; what has changed is found here, by the digest that the pointer has.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from airflow_agent_provider.agents.failures import OutputInvalid, Unavailable
from airflow_agent_provider.workspace.guard import copy_file
from airflow_agent_provider.workspace.output import open_beneath
from airflow_agent_provider.workspace.repository import Mirror
from airflow_agent_provider.workspace.stage import Stage

#: No pointer is longer.
LONGEST_POINTER = 1024
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:ext-.*\n)*"
    rb"oid sha256:([0-9a-f]{64})\nsize [0-9]+\n"
)
_CHUNK = 1024 * 1024


def check_lfs() -> str:
    """Return where the program git-lfs is.

    :raises Unavailable: if this worker has none; the text says what to install.
    """
    program = shutil.which("git-lfs")
    if program is None:
        raise Unavailable(
            "this worker has no git-lfs, which a workflow with 'lfs: true' needs; install the "
            "package git-lfs, as by: apt-get install git-lfs"
        )
    return program


def pointed(content: bytes) -> str | None:
    """Return the SHA-256 that a pointer has; None if ``content`` is no pointer."""
    match = _POINTER.fullmatch(content) if len(content) <= LONGEST_POINTER else None
    return match[1].decode() if match else None


@dataclass(frozen=True)
class _Placed:
    digest: str
    #: What says that nobody has touched the file since.
    identity: tuple[int, int, int, int]

    @property
    def size(self) -> int:
        return self.identity[1]


class LfsFiles:
    """The files in a workspace's tree that git-lfs manages.

    :param mirror: the mirror of the run's repository.
    :param commit: the commit whose objects are fetched.
    :param tree: the workspace's tree.
    :raises AgentFailure: if they cannot be fetched.
    """

    def __init__(self, mirror: Mirror, commit: str, tree: Path) -> None:
        check_lfs()
        mirror.fetch_lfs(commit)
        self._objects = mirror.git.git_dir / "lfs" / "objects"
        self._tree = tree
        self._placed: dict[str, _Placed] = {}

    def fill(self, stage: Stage) -> None:
        """Put the content in place of the pointers in the tree, which holds nothing of an agent's.

        A pointer whose object is not there stays: a hosted agent may have pushed it since.
        """
        self._placed.clear()
        for path, content in stage.filtered("lfs", LONGEST_POINTER).items():
            digest = pointed(content)
            place = self._tree / path
            if digest is None or not place.is_file() or place.is_symlink():
                continue
            kept = self._objects / digest[:2] / digest[2:4] / digest
            if kept.is_file():
                copy_file(kept, place)
                self._placed[path] = _Placed(digest, _identity(place.lstat()))
        stage.hold(self._placed)

    def changed(self, stage: Stage, start: str) -> list[str]:
        """Return the files whose content a commit cannot keep.

        These are those that were put there and are not as they were, and files that git-lfs should
        manage and that the index has in full.

        :param stage: the workspace's stage, right after a snapshot.
        :param start: the commit that the step started from.
        """
        changed = [
            path for path, placed in self._placed.items() if not self._is_as_placed(path, placed)
        ]
        new = stage.filtered("lfs", LONGEST_POINTER, since=start)
        in_full = [path for path, content in new.items() if pointed(content) is None]
        return [*changed, *(path for path in in_full if path not in self._placed)]

    def _is_as_placed(self, path: str, placed: _Placed) -> bool:
        try:
            file = open_beneath(self._tree, path, path)
        except OutputInvalid:
            return False
        try:
            status = os.fstat(file)
            if _identity(status) == placed.identity:
                return True
            if not stat.S_ISREG(status.st_mode) or status.st_size != placed.size:
                return False
            digest = hashlib.sha256()
            while piece := os.read(file, _CHUNK):
                digest.update(piece)
            return digest.hexdigest() == placed.digest
        finally:
            os.close(file)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
