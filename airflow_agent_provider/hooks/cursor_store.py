"""The files in which Cursor's program keeps its conversations on the worker.

They are those of ``JsonlLocalAgentStore`` in ``@cursor/sdk`` 1.1.0, one folder for each
conversation. The agent can write there, so nothing is opened through a link.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from airflow_agent_provider.agents.failures import OutputInvalid
from airflow_agent_provider.workspace.output import read_beneath

_AGENTS = "agents.ndjson"
#: What a conversation is resumed from. Left out are the events of its runs, which are in our
#: transcript.
_PORTABLE = (_AGENTS, "checkpoints.ndjson", "runs.ndjson")
#: Bytes of the file that says where a conversation belongs to: a line or a few.
_MOST_AGENTS = 16 * 1024**2
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Store:
    """One conversation's folder.

    :param home: the session's home.
    :param session: the conversation's id.
    """

    def __init__(self, home: Path, session: str) -> None:
        self._home = home
        self._path = f"cursor/{session}"

    @property
    def folder(self) -> Path:
        """The folder, which need not be there."""
        return self._home / self._path

    def portable_files(self) -> dict[str, Path]:
        """Return the files that resume the conversation elsewhere, by their path below the home."""
        found = {f"{self._path}/{name}": self.folder / name for name in _PORTABLE}
        return {path: file for path, file in found.items() if file.is_file()}

    def adopt(self, workspace: Path) -> bool:
        """Let the conversation belong to ``workspace``, since Cursor resumes it nowhere else.

        :returns: whether the conversation's files are here.
        """
        try:
            content = read_beneath(self._home, f"{self._path}/{_AGENTS}", _MOST_AGENTS)
            moved = _moved(content, workspace)
            if moved != content:
                self._write(moved)
        except (OSError, OutputInvalid, ValueError):
            return False
        return True

    def _write(self, content: bytes) -> None:
        with contextlib.ExitStack() as stack:
            folder = os.open(self._home, _FOLDER)
            stack.callback(os.close, folder)
            for part in self._path.split("/"):
                folder = os.open(part, _FOLDER, dir_fd=folder)
                stack.callback(os.close, folder)
            part = f"{_AGENTS}.part"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)
            with os.fdopen(os.open(part, _NEW, 0o600, dir_fd=folder), "wb") as file:
                file.write(content)
            os.replace(part, _AGENTS, src_dir_fd=folder, dst_dir_fd=folder)


def _moved(content: bytes, workspace: Path) -> bytes:
    """Return the records of agents with another working directory."""
    return b"".join(line.encode() + b"\n" for line in _lines(content.decode(), workspace))


def _lines(text: str, workspace: Path) -> Iterator[str]:
    for line in text.splitlines():
        record = json.loads(line)
        if isinstance(record, dict) and record.get("cwd") != str(workspace):
            record["cwd"] = str(workspace)
            line = json.dumps(record, separators=(",", ":"))
        yield line
