"""An ACP agent's program and its standard streams: one JSON message a line, both ways.

What the official library's own transport leaves open is bounded here: how long a line may be, how
far the agent may run ahead of the step, and what becomes of what it writes elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Bytes that one message may have: agents send images and whole files.
LINE_SIZE = 50 * 1024**2
#: Bytes that are kept of what the agent writes to its standard error, and beside its messages.
_WORDS_SIZE = 8000
_CHUNK = 65536
#: The updates that the protocol has.
_UPDATES = {
    "user_message_chunk", "agent_message_chunk", "agent_thought_chunk", "tool_call",
    "tool_call_update", "plan", "plan_update", "plan_removed", "available_commands_update",
    "current_mode_update", "config_option_update", "session_info_update", "usage_update",
}  # fmt: skip
#: Seconds between two looks at whether the step has caught up.
_BUSY_POLL = 0.02
#: Seconds in which a program ends that has closed its output.
_EXIT_SECONDS = 1.0


class Wire:
    """The transport of one connection, as the library ``acp`` takes it.

    Everything is called in the session's loop.

    :param busy: tells whether the step is behind; the agent waits then.
    """

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._words = b""
        #: What was wrong with the stream, if that is why it ended.
        self.fault: str | None = None

    async def start(self, program: Path, folder: Path) -> None:
        """Start the agent's program.

        :param program: the executable, which takes no arguments.
        :param folder: where it starts.
        """
        self._process = await asyncio.create_subprocess_exec(
            program,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # An agent whose errors nobody reads would hang.
            stderr=asyncio.subprocess.PIPE,
            cwd=folder,
            env=dict(os.environ),
            limit=LINE_SIZE,
        )
        self._reader = asyncio.create_task(self._drain())

    @property
    def words(self) -> str:
        """What the agent last wrote that is no message, for the log and the outcome."""
        text = self._words.decode(errors="replace").strip()
        code = self._process.returncode if self._process else None
        ended = [] if code is None else [f"the program ended with {code}"]
        return "\n".join([*filter(None, (self.fault, text)), *ended])

    async def send(self, message: dict[str, Any]) -> None:
        """Write one message."""
        writer = self._running().stdin
        assert writer is not None
        writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        await writer.drain()

    async def receive(self) -> dict[str, Any] | None:
        """Return the next message, None at the stream's end."""
        while True:
            while self._busy():
                await asyncio.sleep(_BUSY_POLL)
            line = await self._line()
            if line is None:
                # Its exit code is told a moment after the end of its output.
                await self.ended(_EXIT_SECONDS)
                return None
            message = _message(line)
            if message is None:
                self._keep(line)
            elif _is_known(message):
                return message

    async def close(self) -> None:
        """Close the agent's input, which tells it to end."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def ended(self, seconds: float) -> bool:
        """Return whether the program ends within ``seconds``."""
        if self._process is None:
            return True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), seconds)
        return self._process.returncode is not None

    async def end(self) -> None:
        """Let go of the program's streams, once it was killed."""
        if self._process is not None and self._reader is not None:
            await self._reader
            # To the end of its output: only then does asyncio let go of the pipe.
            await self._process.communicate()

    async def _line(self) -> bytes | None:
        reader = self._running().stdout
        assert reader is not None
        try:
            return await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            self._keep(error.partial)
        except asyncio.LimitOverrunError:
            self.fault = f"the agent sent a message of more than {LINE_SIZE:,} bytes"
        return None

    async def _drain(self) -> None:
        reader = self._running().stderr
        assert reader is not None
        while chunk := await reader.read(_CHUNK):
            self._keep(chunk)

    def _keep(self, words: bytes) -> None:
        self._words = (self._words + words)[-_WORDS_SIZE:]

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise ConnectionError("the agent's program was not started")
        return self._process


def _is_known(message: dict[str, Any]) -> bool:
    # The library would log an error, with all of its stack, for each update of a later protocol.
    if message.get("method") != "session/update":
        return True
    params = message.get("params")
    update = params.get("update") if isinstance(params, dict) else None
    return isinstance(update, dict) and update.get("sessionUpdate") in _UPDATES


def _message(line: bytes) -> dict[str, Any] | None:
    # Programs greet, and warn, on the wrong stream.
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
