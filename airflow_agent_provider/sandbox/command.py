"""Runs a command of the workflow in a box: a check of the work, or the workspace's setup."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import IO

from airflow_agent_provider.agents.contract import AgentTask
from airflow_agent_provider.agents.failures import TimedOut
from airflow_agent_provider.sandbox.box import Program, open_box

#: Bytes of a command's output that are kept: its end, where the error stands.
OUTPUT_BYTES = 256 * 1024
_CHUNK = 8192
#: Seconds for the output of a command that has ended, and whose box has.
_DRAIN_SECONDS = 10.0


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    :param command: the command, as the workflow has it.
    :param returncode: its exit code; negative for the signal that ended it.
    :param output: the end of what it wrote: both streams in one, unless they were to be apart.
    :param errors: the end of its second stream, where they were.
    :param seconds: how long it took.
    """

    command: str
    returncode: int
    output: str
    seconds: float
    errors: str = ""


def run_command(task: AgentTask, command: str, *, apart: bool = False) -> Finished:
    """Run a shell command in the workspace, in a box of its own.

    :param task: whose workspace, home, confinement and limits are the command's.
    :param command: for ``/bin/sh``.
    :param apart: whether its two streams are kept apart.
    :raises TimedOut: if the attempt's time is over before the command has ended.
    :raises PolicyViolation: if it wrote more than it may.
    :raises InvalidDefinition: where the sandbox is required and does not work.
    """
    began = time.monotonic()
    with open_box(task, Program(("/bin/sh", "-c", command))) as box:
        process = subprocess.Popen(
            [str(box.wrapper)],
            cwd=task.workspace,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if apart else subprocess.STDOUT,
        )
        assert process.stdout is not None
        tail = _Tail(process.stdout)
        errors = _Tail(process.stderr) if process.stderr is not None else None
        try:
            process.wait(timeout=max(0.1, task.limits.remaining))
        except subprocess.TimeoutExpired:
            raise TimedOut(
                f"the command `{command}` had not ended when the attempt's timeout of "
                f"{task.limits.timeout:g} s was over",
                raw=(errors or tail).text()[-2000:],
            ) from None
        finally:
            # What it left in the background ends with it, and with that the output.
            box.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_DRAIN_SECONDS)
            tail.join()
            if errors is not None:
                errors.join()
        if box.violation is not None:
            raise box.violation
    return Finished(
        command,
        process.returncode,
        tail.text(),
        time.monotonic() - began,
        errors.text() if errors is not None else "",
    )


class _Tail:
    """Reads a stream to its end in a thread, and keeps the last of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._thread = threading.Thread(target=self._read, name="command output", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(_DRAIN_SECONDS)

    def text(self) -> str:
        return b"".join(self._pieces)[-OUTPUT_BYTES:].decode(errors="replace")

    def _read(self) -> None:
        with self._stream:
            while piece := self._stream.read1(_CHUNK):  # type: ignore[attr-defined]
                self._pieces.append(piece)
                self._size += len(piece)
                while self._size - len(self._pieces[0]) > OUTPUT_BYTES:
                    self._size -= len(self._pieces.popleft())
