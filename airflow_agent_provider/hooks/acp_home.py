"""The home of an ACP agent: what is written there for it, and what it keeps of its sessions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from airflow_agent_provider.hooks.acp_presets import Preset
from airflow_agent_provider.hooks.session_files import in_one_line, settled

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
        return self._settled(session_id, lambda end: not message.strip() or written in end)

    def settle_call(self, session_id: str, call_id: str) -> bool:
        """Wait until the agent has written down a tool call's result, if that can be seen.

        :returns: whether it has.
        """
        return self._settled(session_id, in_one_line(json.dumps(call_id), self._preset.result))

    def _settled(self, session_id: str, written: Callable[[bytes], bool]) -> bool:
        if not self.session_files(session_id):
            return False
        return settled(lambda: self.session_files(session_id).values(), written)


def _regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
