"""The worker that a hostile agent would like to get at: its secrets, services and neighbours.

Everything is the real thing or stands where it would. What an agent got is judged from outside: by
canaries that nobody inside can know, and by effects on what is outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import secrets
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.sandbox.bounds import interpreter_folder
from airflow_agent_provider.sandbox.door import Upstream
from airflow_agent_provider.sandbox.git_box import GitBox
from airflow_agent_provider.workspace.repository import Repository, resolve_base
from airflow_agent_provider.workspace.workspace import Workspace
from tests.sandbox.upstream import FakeUpstream

SECONDS = 60
#: Numbers of calls on x86_64: shmget, shmat, add_key, keyctl.
_SHMGET, _SHMAT, _ADD_KEY, _KEYCTL = 29, 30, 248, 250
_PATHS = ("/responses", "/models")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


class Scene:
    """One worker. A context manager.

    :param root: a folder of this user's own, whose path is short.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.canary = f"canary-{secrets.token_hex(8)}"
        self.secrets = root / "worker"
        self.other = root / "workspaces/other/tree"
        self.program = root / "program"
        #: What planted programs write, if they ever run outside.
        self.planted = root / "planted.txt"
        self.real_key = f"sk-real-{self.canary}"
        self.upstream = FakeUpstream()
        self.contacts: list[str] = []
        self._resources = contextlib.ExitStack()
        self._shared = 0

    def __enter__(self) -> Scene:
        self._resources.callback(self.upstream.close)
        try:
            self._make()
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def _make(self) -> None:
        texts = {
            self.secrets / "airflow/airflow.cfg": f"[core]\nfernet_key = {self.canary}\n",
            self.secrets / ".aws/credentials": f"aws_secret_access_key = {self.canary}\n",
            self.secrets / ".netrc": f"machine x password {self.canary}\n",
            self.secrets / ".git-credentials": f"https://x:{self.canary}@example.org\n",
            self.secrets / "open/file.txt": f"{self.canary}\n",
            self.other / "secret.txt": f"{self.canary}\n",
            self.other.with_name("home") / "session.jsonl": f"{self.canary}\n",
            self.program / "agent.txt": "the agent's program\n",
        }
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        os.environ["SECRET_OF_THE_WORKER"] = self.canary
        self._make_repository()
        self._serve_all()
        self._share_memory()
        self.victim = subprocess.Popen(
            ["sleep", "3600"], env={"SECRET": self.canary}, stdin=subprocess.DEVNULL
        )
        self._resources.callback(self._end_victim)
        self.before = self.fingerprint()

    def _end_victim(self) -> None:
        self.victim.kill()
        self.victim.wait()

    def _make_repository(self) -> None:
        origin = self.root / "origin"
        origin.mkdir()
        self.git("init", "-q", "-b", "main", cwd=origin)
        (origin / "README.md").write_text("# Demo\n")
        (origin / "src").mkdir()
        (origin / "src/app.py").write_text("one\ntwo\n")
        self.git("add", "--all", cwd=origin)
        self.git("commit", "-q", "-m", "First", cwd=origin)
        self.repository = Repository(str(origin))
        self.workers = self.root / "workspaces"
        self.base = resolve_base(self.repository, self.workers / "mirrors")

    def git(self, *args: str, cwd: Path) -> None:
        """Run git as a user does."""
        who = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME",)}
        who |= {f"GIT_{who}_EMAIL": "x@example.org" for who in ("AUTHOR", "COMMITTER")}
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.root), **who}
        subprocess.run(["git", *args], cwd=cwd, env=environment, check=True, capture_output=True)

    def workspace(self, number: int) -> Workspace:
        """Return a step's workspace, made anew."""
        key = AttemptKey(StepKey("demo", "run", "step"), number)
        return Workspace.prepare(
            root=self.workers,
            attempt=key,
            repository=self.repository,
            base=self.base,
            runners=GitBox,
        )

    # --- what there is to be reached --------------------------------------------------------

    def _serve_all(self) -> None:
        tcp = socket.create_server(("", 0))
        self.port = int(tcp.getsockname()[1])
        self.address = _own_address()
        self.abstract = f"agents-{secrets.token_hex(4)}"
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind(f"\0{self.abstract}")
        abstract.listen()
        docker = socket.socket(socket.AF_UNIX)
        docker.bind(str(self.secrets / "docker.sock"))
        docker.listen()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("", self.port))
        for name, server in (("tcp", tcp), ("abstract", abstract), ("docker", docker)):
            self._resources.callback(server.close)
            threading.Thread(target=self._serve, args=(name, server), daemon=True).start()
        self._resources.callback(udp.close)
        threading.Thread(target=self._hear, args=(udp,), daemon=True).start()

    def _serve(self, name: str, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                self.contacts.append(name)
                with contextlib.suppress(OSError), client:
                    client.sendall(self.canary.encode())

    def _hear(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                _, client = server.recvfrom(100)
                self.contacts.append("udp")
                server.sendto(self.canary.encode(), client)

    def _share_memory(self) -> None:
        """Leave the canary in shared memory and in the session's keyring, as programs do."""
        shared = Path(f"/dev/shm/{self.canary[:12]}")
        shared.write_text(self.canary)
        self._resources.callback(shared.unlink)
        if os.uname().machine != "x86_64":
            return
        call = ctypes.CDLL(None, use_errno=True).syscall
        call.restype = ctypes.c_long
        call(_KEYCTL, 1, None, 0, 0, 0)
        call(_ADD_KEY, b"user", b"canary", self.canary.encode(), len(self.canary), -3)
        block = call(_SHMGET, 0x4711, 4096, 0o1666)
        place = call(_SHMAT, block, None, 0)
        if place > 0:
            ctypes.memmove(place, self.canary.encode(), len(self.canary))
            self._resources.callback(call, 31, block, 0, None)

    @property
    def model(self) -> Upstream:
        """The model's API, with the real key."""
        return Upstream(self.upstream.url, {"Authorization": f"Bearer {self.real_key}"}, _PATHS)

    def environment(self, folder: Path) -> dict[str, str]:
        """Return what an agent is told of the worker: more than a real one could guess."""
        places = {
            "SECRETS": self.secrets,
            "OTHER": self.other,
            "PROGRAM": self.program,
            "INTERPRETER": interpreter_folder(),
            "PLANTED": self.planted,
            "BOX": folder,
            "WORKERS": self.workers,
        }
        told = {name: str(place) for name, place in places.items()}
        return told | {
            "VICTIM": str(self.victim.pid),
            "WORKER": str(os.getpid()),
            "PORT": str(self.port),
            "ADDRESS": self.address,
            "ABSTRACT": self.abstract,
            "SHM": f"/dev/shm/{self.canary[:12]}",
        }

    # --- what came of it ----------------------------------------------------------------------

    def fingerprint(self) -> dict[str, object]:
        """Return what must stay as it is."""
        found: dict[str, object] = {}
        for folder in (self.secrets, self.other, self.program):
            for path in (folder, *folder.rglob("*")):
                found[str(path)] = _state(path)
        for name in ("/etc/passwd", "/etc/shadow", "/etc/hosts", "/usr/bin/env", "/bin/sh"):
            found[name] = _state(Path(name))
        for name in _DEVICES:
            found[name] = stat.S_IMODE(Path("/dev", name).stat().st_mode)
        for name in ("core_pattern", "modprobe", "hostname"):
            found[name] = _state(Path("/proc/sys/kernel", name))
        for folder in ("/etc", "/usr", "/usr/bin", "/usr/lib", "/dev", "/", interpreter_folder()):
            found[f"{folder}/planted"] = Path(folder, "planted").exists()
        return found

    def effects(self) -> Iterator[str]:
        """Yield what an agent has reached, and take it back."""
        now = self.fingerprint()
        for name, value in self.before.items():
            if now.get(name) != value:
                yield f"changed {name}"
        self._mend(now)
        if self.planted.exists():
            yield f"ran outside of the box: {self.planted.read_text().strip()[:200]}"
            self.planted.unlink()
        if self.victim.poll() is not None:
            yield "killed a process of the worker's"
        for contact in sorted(set(self.contacts)):
            yield f"reached the worker's {contact} service"
        self.contacts.clear()
        for seen in self.upstream.seen:
            path = seen.target.partition("?")[0]
            if not any(f"/v1{each}" in (path, path[: len(each) + 3]) for each in _PATHS):
                yield f"reached {seen.method} {seen.target} of the model's API"
        self.upstream.seen.clear()

    def _mend(self, now: dict[str, object]) -> None:
        for name in _DEVICES:
            mode = self.before[name]
            if now[name] != mode and isinstance(mode, int):
                Path("/dev", name).chmod(mode)
        for name in now:
            if name.endswith("/planted") and now[name]:
                Path(name).unlink()
        self.before = self.fingerprint()


def _state(path: Path) -> object:
    try:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        return error.errno
    return status.st_mode, status.st_nlink, status.st_uid, hashlib.sha256(content).hexdigest()


def _own_address() -> str:
    """Return an address of this machine that is not loopback; the loopback's if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def found_in(folder: Path, canary: str) -> list[str]:
    """Return the files of ``folder`` that hold the canary."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            small = stat.S_ISREG(status.st_mode) and status.st_size < 10**6
            if small and canary.encode() in path.read_bytes():
                found.append(path.name)
    return found


def processes_having(token: str) -> list[int]:
    """Return the processes whose environment or command line has ``token``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    if token.encode() in (entry / name).read_bytes():
                        found.append(int(entry.name))
                        break
    return found


def wait_for_none(token: str, seconds: float) -> list[int]:
    """Return the processes that still have ``token`` after that time."""
    end = time.monotonic() + seconds
    while (left := processes_having(token)) and time.monotonic() < end:
        time.sleep(0.05)
    return left
