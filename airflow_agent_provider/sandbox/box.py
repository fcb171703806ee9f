"""The box of one session: what an agent's program runs in, the same for every agent.

A vendor's SDK is given :attr:`Box.wrapper` as the agent's program. Whoever starts it gets the real
program inside the box, with a clean environment, and its standard streams.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import stat
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from airflow_agent_provider.agents.contract import Access, AgentTask, Confinement, Network, Sandbox
from airflow_agent_provider.agents.failures import (
    AgentFailure,
    InvalidDefinition,
    PolicyViolation,
)
from airflow_agent_provider.agents.processes import INHERITED, MARK, end_marked
from airflow_agent_provider.sandbox.bounds import (
    SYSTEM_PATH,
    Bounds,
    arguments,
    interpreter,
    interpreter_folder,
)
from airflow_agent_provider.sandbox.cgroups import Cgroup, make_cgroup
from airflow_agent_provider.sandbox.door import Door, Upstream
from airflow_agent_provider.sandbox.leftovers import take_privileges
from airflow_agent_provider.sandbox.preflight import check
from airflow_agent_provider.sandbox.private import PrivateFolder
from airflow_agent_provider.sandbox.size import SizeWatch
from airflow_agent_provider.sandbox.syscalls import call_filter
from airflow_agent_provider.sandbox.usage import UsageWatch

#: The port on the box's own loopback interface that leads to the door. Always the same, so that
#: what a session has written down of it holds on every worker.
MODEL_PORT = 47113
#: Where the door's socket is, inside.
_SOCKET = "/run/model.sock"
_PUMP = "/run/pump.py"
#: Seconds for what still runs in a box to end.
_END_SECONDS = 5.0

#: What passes from the worker's environment into every box.
_INHERITED = tuple(name for name in INHERITED if name not in ("PATH", "USER", "LOGNAME"))
_PROXIES = ("http_proxy", "https_proxy")


@dataclass(frozen=True)
class Program:
    """An agent's program.

    :param command: its path, and leading arguments.
    :param folders: read-only folders that it needs beyond /usr: those of its package.
    :param environment: its variables, without any secret; HOME, TMPDIR and PATH are the box's.
    :param inherited: names of variables that the SDK gives its child, and that pass through.
    :param path: folders that come first where programs are looked up.
    :param port: where it listens for its SDK, on the loopback interface, if it does; see
        :attr:`Box.inlet`.
    """

    command: tuple[str, ...]
    folders: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: tuple[str, ...] = ()
    path: tuple[Path, ...] = ()
    port: int | None = None


class Box:
    """What one program runs in; made by :func:`open_box`. A context manager.

    :ivar boxed: whether there is a box; without one, only the environment is clean.
    :ivar wrapper: the executable that stands for the agent's program.
    :ivar door: the way to the model, if the program has one.
    :ivar folder: a private folder that goes with the box, outside of what the program sees.
    """

    def __init__(self, task: AgentTask, program: Program, upstream: Upstream | None) -> None:
        self.task = task
        self.boxed = _boxed(task.confinement)
        # Not below the home or the workspace: nothing in here is the agent's.
        self._private = PrivateFolder()
        self.folder = self._private.path
        self.wrapper = self.folder / "agent"
        self.mark = uuid.uuid4().hex
        self.door: Door | None = None
        self._program = program
        self._closed = False
        self._size: SizeWatch | None = None
        self._usage: UsageWatch | None = None
        self._cgroup = Cgroup()
        try:
            self._open(upstream)
        except BaseException:
            self.close()
            raise

    @property
    def model_url(self) -> str:
        """The base URL of the model's API, as the agent reaches it through the door."""
        if self.door is None:
            raise RuntimeError("this box has no door")
        port = self.door.port or MODEL_PORT
        return f"http://127.0.0.1:{port}{self.door.upstream.path}"

    @property
    def model_key(self) -> str:
        """What the agent takes for its key."""
        if self.door is None:
            raise RuntimeError("this box has no door")
        return self.door.key

    @property
    def inlet(self) -> Path | None:
        """The unix socket that leads to the program's port; None where the port itself does.

        It is there once the program runs, and lies outside of what the program sees.
        """
        if self._program.port is None or not self._networkless:
            return None
        return self.folder / "inlet.sock"

    @property
    def violation(self) -> AgentFailure | None:
        """Why the box ended its program, if it did."""
        watches = (self._size, self._usage)
        return next((watch.violation for watch in watches if watch and watch.violation), None)

    def write_wrapper(self, environment: Mapping[str, str]) -> None:
        """Make the wrapper, once more variables are known, as the model's URL.

        :param environment: variables beyond the program's own.
        """
        spec = {
            "environment": {**self._environment(), **environment},
            "inherited": [*self._inherited(), *self._program.inherited],
            "limits": _limits(self.task.confinement),
            "cgroups": self._cgroup.entrances,
            "stdin": _own_stdin(),
            "bwrap": [_bubblewrap(), *arguments(self._bounds())] if self.boxed else [],
            "inlet": None if self.inlet is None else str(self.inlet),
            "filter": call_filter().hex(),
            "command": [*self._pump(), *self._program.command],
        }
        path = self.folder / "spec.json"
        path.write_text(json.dumps(spec))
        enter = Path(__file__).with_name("enter.py")
        words = shlex.join([str(interpreter()), "-IS", str(enter), str(path)])
        # Written under another name first: a program that is open for writing cannot be run.
        part = self.folder / "part"
        part.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        part.chmod(0o700)
        part.replace(self.wrapper)

    def kill(self) -> None:
        """End whatever runs in the box, at once."""
        end_marked(self.mark, _END_SECONDS)

    def close(self) -> None:
        """End whatever still runs in the box, and the door; harmless a second time."""
        if self._closed:
            return
        self._closed = True
        for watch in (self._size, self._usage):
            if watch is not None:
                watch.close()
        self.kill()
        if self.boxed:
            take_privileges((self.task.workspace, self.task.home))
        if self.door is not None:
            self.door.close()
        self._cgroup.close()
        self._private.close()

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, upstream: Upstream | None) -> None:
        for folder in (self.task.home, self.task.workspace):
            # What an agent may have put in its place would be shown, wherever it leads.
            if folder.is_symlink():
                raise PolicyViolation(f"{folder} is a symbolic link, so it is given to no agent")
        self.task.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (self.task.home / "tmp").mkdir(mode=0o700)
        if upstream is not None:
            place = self.folder / "model.sock" if self._networkless else None
            self.door = Door(upstream, place)
        if self.boxed:
            check(_bubblewrap(), self._bounds())
        bounds = self.task.confinement
        self._cgroup = make_cgroup(self.mark, bounds.processes, bounds.memory)
        self.write_wrapper({})
        folders = (self.task.workspace, self.task.home)
        self._size = SizeWatch(folders, bounds.disk, self.kill)
        self._usage = UsageWatch(
            self.mark,
            0 if "memory" in self._cgroup.kinds else bounds.memory,
            # Of ordinary users, the kernel counts them.
            0 if "pids" in self._cgroup.kinds or os.geteuid() != 0 else bounds.processes,
            self.kill,
        )

    @property
    def _networkless(self) -> bool:
        return self.boxed and self.task.confinement.network is Network.MODEL

    def _pump(self) -> list[str]:
        pairs = []
        if self._networkless and self.door is not None:
            pairs.append(f"tcp:{MODEL_PORT}=unix:{_SOCKET}")
        if self.inlet is not None:
            pairs.append(f"fd:{{inlet}}=tcp:{self._program.port}")
        return [str(interpreter()), "-IS", _PUMP, *pairs, "--"] if pairs else []

    def _environment(self) -> dict[str, str]:
        home = self.task.home
        direct = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1", "localhost")))
        environment = {
            "NO_PROXY": direct,
            "no_proxy": direct,
            "HOME": str(home),
            "TMPDIR": str(home / "tmp"),
            "PATH": os.pathsep.join(map(str, self._path())),
            MARK: self.mark,
        }
        return {**self._program.environment, **environment}

    def _inherited(self) -> list[str]:
        # Where there is no network, a proxy would only keep the agent from its door.
        return [n for n in _INHERITED if not (self._networkless and n.lower() in _PROXIES)]

    def _path(self) -> list[Path | str]:
        tree = self.task.workspace
        # The project's own tools, where `setup` has installed them.
        own = [tree / ".venv" / "bin", tree / "node_modules" / ".bin"]
        more = [path / "bin" for path in self.task.confinement.read_only_paths]
        outside = [] if self.boxed else os.environ.get("PATH", os.defpath).split(os.pathsep)
        found: list[Path | str] = [*self._program.path, *own, *more, *SYSTEM_PATH, *outside]
        return [*found, interpreter_folder() / "bin"]

    def _bounds(self) -> Bounds:
        task = self.task
        writable = [task.home]
        readable = [*self._program.folders, *task.confinement.read_only_paths]
        if task.access is Access.WRITE:
            writable.append(task.workspace)
            # The agent edits, and we commit: hooks, filters and settings in there are our own.
            readable.append(task.workspace / ".git")
        else:
            readable.append(task.workspace)
        sockets: list[tuple[Path, str]] = []
        if self._networkless and self.door is not None and self.door.place is not None:
            sockets.append((self.door.place, _SOCKET))
        if sockets or self.inlet is not None:
            sockets.append((Path(__file__).with_name("pump.py"), _PUMP))
        return Bounds(task.workspace, writable, readable, not self._networkless, sockets)


def open_box(task: AgentTask, program: Program, upstream: Upstream | None = None) -> Box:
    """Return the box for ``task``, with a wrapper that runs ``program`` in it.

    :param task: whose workspace, home, access and confinement are the box's.
    :param program: what runs in it.
    :param upstream: the model's API, if the program needs one.
    :raises InvalidDefinition: where the sandbox is required and does not work; the reason has the
        command that mends it.
    """
    return Box(task, program, upstream)


def _boxed(confinement: Confinement) -> bool:
    if confinement.sandbox is Sandbox.OFF:
        return False
    if confinement.sandbox is Sandbox.REQUIRED:
        return True
    return works()


@cache
def works() -> bool:
    """Return whether this worker can make a box at all, as seen by one trial."""
    try:
        try_box()
    except InvalidDefinition:
        return False
    return True


def try_box() -> str:
    """Make a box that shows nothing; return the program that did it.

    :raises InvalidDefinition: where this worker cannot.
    """
    program = _bubblewrap()
    with tempfile.TemporaryDirectory(prefix="agent-box-") as folder:
        check(program, Bounds(Path(folder), writable=[Path(folder)]))
    return f"{program} works"


def _bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise InvalidDefinition(
            "the sandbox needs the program bwrap, which this worker does not have; install it "
            "(Debian: apt-get install bubblewrap), or set [agents] sandbox = off on workers that "
            "are throw-away containers"
        )
    return found


def _own_stdin() -> list[int]:
    """Return device and inode of this process's standard input, unless it is a terminal or such."""
    try:
        status = os.fstat(0)
    except OSError:
        return []
    return [] if stat.S_ISCHR(status.st_mode) else [status.st_dev, status.st_ino]


def _limits(confinement: Confinement) -> dict[str, int]:
    return {
        "RLIMIT_DATA": confinement.memory,
        "RLIMIT_NPROC": confinement.processes + _threads_of_this_user(),
        "RLIMIT_FSIZE": confinement.file_size,
        "RLIMIT_CORE": 0,
    }


def _threads_of_this_user() -> int:
    """Return how many threads this user has: the kernel counts those outside of the box as well."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == os.geteuid():
                    total += len(list((entry / "task").iterdir()))
    return total
