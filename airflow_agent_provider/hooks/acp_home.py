"""The home of an ACP agent: what is written there for it, and what it keeps of its sessions."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_agent_provider.hooks.acp_presets import Preset

#: Seconds that an agent may take to write down what it has said, and between two looks.
_SETTLE_SECONDS = 2.0
_SETTLE_POLL = 0.02
#: Bytes at the end of a file in which it must stand then.
_TAIL = 256 * 1024
#: Characters of a message by which it is known there.
_BEGINNING = 200


class Home:
    """The session home of an ACP agent.

    :param folder: where it is.
    :param preset: what is known of the agent.
    """

    def __init__(self, folder: Path, preset: Preset) -> None:
        self._folder = folder
        self._preset = preset

    def write(self, files: Mapping[str, Any]) -> None:
        """Write files for the agent.

        :param files: values that are written as JSON, by the file's path below the home.
        """
        for name, value in files.items():
            path = self._folder / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # An earlier attempt may have put a link there.
            path.unlink(missing_ok=True)
            path.write_text(json.dumps(value))

    def session_files(self, session_id: str) -> dict[str, Path]:
        """Return the files from which the agent resumes a session, by their path below the home."""
        found = [
            path
            for pattern in self._preset.sessions
            for path in self._folder.glob(pattern.replace("{id}", session_id))
        ]
        return {p.relative_to(self._folder).as_posix(): p for p in sorted(found) if _regular(p)}

    def settle(self, session_id: str, message: str) -> bool:
        """Wait until the agent has written down its final message, for some agents do so later.

        :returns: whether it has.
        """
        text = json.dumps(message.strip(), ensure_ascii=False)[:_BEGINNING]
        written = self._preset.written.replace("{message}", text).encode()
        end = time.monotonic() + _SETTLE_SECONDS
        while files := self.session_files(session_id).values():
            if not message.strip() or any(written in _tail(path) for path in files):
                return True
            if time.monotonic() > end:
                break
            time.sleep(_SETTLE_POLL)
        return False


def _regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _tail(path: Path) -> bytes:
    """Return the end of a file, which is the agent's: no link is followed, no pipe waited for."""
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
