"""Child processes of a stand-in, with an owner that ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO


class Ended(Exception):
    """The owner was told to end its processes, and starts no more."""


@dataclass(frozen=True)
class Finished:
    """How a process ended.

    :param returncode: its exit status, negative for the signal that ended it.
    :param output: what it wrote, both streams in one.
    """

    returncode: int
    output: str


class Processes:
    """Runs programs one at a time, each in a process group of its own, until :meth:`end`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()

    @property
    def ended(self) -> threading.Event:
        """Set once no more may run; a wait can be cut short by it."""
        return self._ended

    def run(
        self, command: Sequence[str], *, folder: Path, env: Mapping[str, str], timeout: float
    ) -> Finished:
        """Run a program to its end.

        :param command: the program and its arguments.
        :param folder: where it runs.
        :param env: its whole environment.
        :param timeout: seconds after which it is killed, with all of its group.
        :raises Ended: if :meth:`end` was called before or meanwhile.
        """
        # A file, not a pipe: a program left in the background would hold the pipe open.
        with tempfile.TemporaryFile() as output:
            child = self._start(command, folder, env, output)
            try:
                child.wait(timeout)
                note = ""
            except subprocess.TimeoutExpired:
                note = f"\nkilled after {timeout:g} s"
            finally:
                # What the program left in the background goes with it.
                _kill_group(child)
                with self._lock:
                    self._child = None
            child.wait()
            output.seek(0)
            text = output.read().decode(errors="replace") + note
        if self._ended.is_set():
            raise Ended
        return Finished(child.returncode, text)

    def _start(
        self, command: Sequence[str], folder: Path, env: Mapping[str, str], output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._ended.is_set():
                raise Ended
            self._child = subprocess.Popen(
                list(command),
                cwd=folder,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            return self._child

    def end(self) -> None:
        """Kill what runs and start nothing any more; callable from any thread."""
        with self._lock:
            self._ended.set()
            if self._child is not None:
                _kill_group(self._child)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
