"""Runs commands that come on the standard input; what they gave goes to the standard output.

A script, which runs inside a box as ``python -IS serve.py``; it must import nothing of ours, and
little else, since the first command waits for it. Its other end is
:mod:`airflow_agent_provider.sandbox.git_box`, which has the same two formats.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess

#: The head of a request: seconds that it may take, and how many bytes follow of the folder, of the
#: command, of the environment (their words, each ended by NUL) and of the command's input.
_REQUEST = struct.Struct(">d4Q")
#: The head of an answer: what came of it, the exit code, and how many bytes follow of its output
#: and of its errors. The first answer is to nothing: the box stands.
_ANSWER = struct.Struct(">BiQQ")
_DONE, _LATE, _NOT_STARTED = range(3)
#: Seconds between the polite and the hard end of a command that took too long.
_GRACE = 2.0


def main() -> None:
    """Serve until the input ends."""
    # Commands get streams of their own, never these.
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    answer: tuple[int, int, bytes, bytes] = (_DONE, 0, b"", b"")
    while True:
        kind, code, out, err = answer
        answers.write(_ANSWER.pack(kind, code, len(out), len(err)) + out + err)
        answers.flush()
        head = requests.read(_REQUEST.size)
        if len(head) < _REQUEST.size:
            return
        seconds, *lengths = _REQUEST.unpack(head)
        answer = _run(seconds, *(requests.read(length) for length in lengths))


def _run(
    seconds: float, folder: bytes, command: bytes, environment: bytes, stdin: bytes
) -> tuple[int, int, bytes, bytes]:
    variables = dict(word.split(b"=", 1) for word in _words(environment))
    try:
        process = subprocess.Popen(
            _words(command),
            cwd=folder,
            env={**os.environb, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Its own group, so that its helpers end with it.
            start_new_session=True,
        )
    except OSError as error:
        return _NOT_STARTED, error.errno or 0, b"", str(error).encode()
    try:
        out, err = process.communicate(stdin, timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return _LATE, 0, b"", b""
    return _DONE, process.returncode, out, err


def _words(content: bytes) -> list[bytes]:
    return content.split(b"\0")[:-1]


def _end(process: subprocess.Popen[bytes]) -> None:
    # SIGTERM first: git then removes its lock files.
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_GRACE)
            return


if __name__ == "__main__":
    main()
