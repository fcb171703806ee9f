"""A box for the worker's own git, which reads what agents have prepared.

One box serves all commands on one workspace, since a new one for each would cost more than most of
them. It has no network, no credential and no agent in it; what a filter, a hook or a fault of git's
might run there cannot get out.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import struct
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from airflow_agent_provider.sandbox.bounds import SYSTEM_PATH, Bounds, arguments, interpreter
from airflow_agent_provider.sandbox.syscalls import call_filter

_SERVE = "/run/serve.py"
#: What is said there; see :mod:`.serve`, which can import nothing from here.
_REQUEST = struct.Struct(">d4Q")
_ANSWER = struct.Struct(">BiQQ")
_DONE, _LATE, _NOT_STARTED = range(3)
#: Seconds for the box to stand, and for an answer beyond the time that its command may take.
_START_SECONDS = 30.0
_GRACE = 15.0
#: Seconds for a box to end that was killed.
_END_SECONDS = 5.0
#: Bytes of each of an answer's streams: the box is not trusted.
_MOST_BYTES = 2 * 1024**3
_CHUNK = 1024 * 1024


class GitBox:
    """Runs git in a box, which starts with the first command and again after :meth:`close`.

    Callable from any thread; one command runs at a time.

    :param writable: folders that git may write: a working tree, a git directory.
    :param readable: folders and files that it may only read, as borrowed objects; they win.
    """

    def __init__(self, writable: Sequence[Path], readable: Sequence[Path] = ()) -> None:
        folder, path = _git_folders()
        self._path = path
        self._bounds = Bounds(
            Path("/"),
            writable=list(writable),
            readable=[*readable, *folder],
            sockets=[(Path(__file__).with_name("serve.py"), _SERVE)],
        )
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._finalizer: weakref.finalize[..., GitBox] | None = None

    def starts(self) -> bool:
        """Start the box; return whether it stands."""
        with self._lock:
            try:
                self._started()
            except OSError:
                return False
            return True

    def run(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: bytes,
        timeout: float,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command and return what it gave.

        :param command: the program and its arguments.
        :param cwd: the folder to run in.
        :param env: its variables, beside PATH and HOME.
        :param stdin: what it reads.
        :param timeout: seconds; then it is ended.
        :raises subprocess.TimeoutExpired: if it takes longer.
        :raises OSError: if it cannot be started, or its box has ended.
        """
        with self._lock:
            running = self._started()
            words = _ended([f"{name}={value}" for name, value in env.items()])
            try:
                answer = running.ask(timeout, os.fsencode(cwd), _ended(command), words, stdin)
            except BaseException:
                # Whatever went wrong, nobody knows what the next frame would be.
                self._end()
                raise
        if answer.kind == _LATE:
            raise subprocess.TimeoutExpired(list(command), timeout)
        if answer.kind == _NOT_STARTED:
            raise OSError(answer.code, answer.stderr.decode(errors="replace"))
        return subprocess.CompletedProcess(command, answer.code, answer.stdout, answer.stderr)

    def close(self) -> None:
        """End the box and whatever runs in it; harmless a second time."""
        with self._lock:
            self._end()

    def _started(self) -> _Running:
        if self._running is not None and self._running.process.poll() is None:
            return self._running
        self._end()
        running = _Running(self._bounds, self._path)
        # A workspace that is forgotten leaves no box behind.
        self._finalizer = weakref.finalize(self, running.end)
        self._running = running
        try:
            running.receive(time.monotonic() + _START_SECONDS)
        except OSError as error:
            self._end()
            raise OSError(f"the box of git does not start: {running.last_words}") from error
        return running

    def _end(self) -> None:
        finalizer, self._finalizer, self._running = self._finalizer, None, None
        if finalizer is not None:
            finalizer()


@dataclass(frozen=True)
class _Answer:
    kind: int
    code: int
    stdout: bytes
    stderr: bytes


class _Running:
    """A box that stands, and the talk with it."""

    process: subprocess.Popen[bytes]
    #: What bubblewrap said, once it has ended.
    last_words = ""

    def __init__(self, bounds: Bounds, path: str) -> None:
        self._command = [str(interpreter()), "-IS", _SERVE]
        self._words = arguments(bounds)
        self._environment = {"PATH": path, "HOME": "/tmp"}
        self._leave = threading.Event()
        self._failure: OSError | None = None
        started = threading.Event()
        # The box ends with the thread that starts it, so that one does nothing else.
        threading.Thread(target=self._live, args=(started,), name="git box", daemon=True).start()
        started.wait()
        if self._failure is not None:
            raise self._failure

    def ask(self, seconds: float, *contents: bytes) -> _Answer:
        """Send a request, and return the answer.

        :param seconds: how long the command may take.
        :param contents: folder, command, environment and input.
        :raises OSError: if there is no answer in time, or none that makes sense.
        """
        end = time.monotonic() + seconds + _GRACE
        self._send(_REQUEST.pack(seconds, *map(len, contents)) + b"".join(contents[:-1]), end)
        self._send(contents[-1], end)
        return self.receive(end)

    def receive(self, end: float) -> _Answer:
        """Return the next answer.

        :param end: the monotonic clock's seconds until which it must be here.
        """
        kind, code, out, err = _ANSWER.unpack(self._read(_ANSWER.size, end))
        if max(out, err) > _MOST_BYTES:
            raise OSError("the box of git says too much")
        return _Answer(kind, code, self._read(out, end), self._read(err, end))

    def end(self) -> None:
        """Kill the box and wait for its end."""
        self._leave.set()
        process = self.process
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        if process.stderr is not None:
            with contextlib.suppress(OSError):
                self.last_words = (process.stderr.read(2000) or b"").decode(errors="replace")
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _live(self, started: threading.Event) -> None:
        try:
            self._start()
        except OSError as error:
            self._failure = error
            return
        finally:
            started.set()
        self._leave.wait()

    def _start(self) -> None:
        program = shutil.which("bwrap")
        if program is None:
            raise FileNotFoundError("bwrap is missing")
        files = [_file(call_filter())]
        words = [*self._words, "--seccomp", str(files[0])]
        try:
            files.append(_file(_ended(words)))
            self.process = subprocess.Popen(
                [program, "--args", str(files[1]), "--", *self._command],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=files,
                bufsize=0,
                start_new_session=True,
            )
        finally:
            for file in files:
                os.close(file)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)

    def _send(self, content: bytes, end: float) -> None:
        assert self.process.stdin is not None
        stream = self.process.stdin.fileno()
        left = memoryview(content)
        while left:
            _wait(stream, select.POLLOUT, end)
            left = left[os.write(stream, left[:_CHUNK]) :]

    def _read(self, size: int, end: float) -> bytes:
        assert self.process.stdout is not None
        stream = self.process.stdout.fileno()
        content = bytearray()
        while len(content) < size:
            _wait(stream, select.POLLIN, end)
            piece = os.read(stream, min(_CHUNK, size - len(content)))
            if not piece:
                raise ConnectionError("the box of git has ended")
            content += piece
        return bytes(content)


def _wait(stream: int, event: int, end: float) -> None:
    poll = select.poll()
    poll.register(stream, event)
    if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
        raise TimeoutError("the box of git does not answer")


def _ended(words: Sequence[str]) -> bytes:
    if any("\0" in word for word in words):
        raise ValueError("embedded null byte")
    return b"".join(os.fsencode(word) + b"\0" for word in words)


def _file(content: bytes) -> int:
    descriptor = os.memfd_create("box")
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _git_folders() -> tuple[list[Path], str]:
    """Return what git needs to be seen of beyond /usr, and where programs are looked up."""
    places = [str(place) for place in SYSTEM_PATH]
    found = shutil.which("git")
    if found is None or Path(found).resolve().is_relative_to("/usr"):
        return [], os.pathsep.join(places)
    real = Path(found).resolve()
    # Its own programs lie beside it, as in PREFIX/libexec.
    return [real.parent.parent], os.pathsep.join([str(real.parent), *places])
