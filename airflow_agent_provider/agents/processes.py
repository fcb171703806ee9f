"""An agent's processes: started with little of the worker's environment, ended without exception.

Vendors' SDKs start their program with the whole environment of the worker, which holds Airflow's
secrets, and their own ``close`` misses what a command of the agent left in the background.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Variable by which every process of a session is known, whoever started it.
MARK = "AGENT_SESSION_MARK"

#: What a program needs of the worker's environment: no variable that may hold a secret of
#: Airflow's. A proxy is needed to reach the vendor where there is one.
INHERITED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "USER",
    "LOGNAME",
    "SHELL",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)

_POLL = 0.02


def clean_command(program: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Return the command that runs ``program`` with only the named environment variables.

    :param program: the executable; its arguments may follow the returned ones.
    :param names: names of the variables; secrets stay in the environment, off the command line.
    """
    launcher = Path(__file__).with_name("launcher.py")
    return (sys.executable, "-IS", str(launcher), ",".join(sorted(names)), str(program))


def end_marked(mark: str, seconds: float = 5.0) -> bool:
    """Kill every process of this user whose environment has :data:`MARK` set to ``mark``.

    :param mark: the session's value.
    :param seconds: how long to wait for their end.
    :returns: whether none is left.
    """
    return _end_having(f"{MARK}={mark}", seconds)


def end_at_home(home: Path, seconds: float = 5.0) -> bool:
    """Kill every process of this user whose ``HOME`` is an agent's session home.

    They are what an earlier attempt of the step left on this worker: they would go on writing to
    the workspace, which has the same path for every attempt.

    :param home: the session home of the step.
    :param seconds: how long to wait for their end.
    :returns: whether none is left.
    """
    return _end_having(f"HOME={home}", seconds)


def _end_having(variable: str, seconds: float) -> bool:
    # Processes are read from /proc: elsewhere than on Linux, none is found.
    end = time.monotonic() + seconds
    while sum(_kill(entry, variable) for entry in _own_processes()):
        if time.monotonic() > end:
            return False
        time.sleep(_POLL)
    return True


def _own_processes() -> Iterator[Path]:
    root = Path("/proc")
    if not root.is_dir():
        return
    for entry in root.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == os.geteuid():
                    yield entry


def _kill(entry: Path, variable: str) -> bool:
    # A descriptor of the process, so that a reused id is not taken for it.
    try:
        process = os.pidfd_open(int(entry.name))
    except OSError:
        return False
    try:
        variables = (entry / "environ").read_bytes().split(b"\0")
        if variable.encode() not in variables:
            return False
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(process)
    return True
