"""Tries on this worker all that a hostile agent could, and prints what came of it.

    python -m tests.sandbox.hostile [--only WORD] [--unboxed]

Each attempt is made in a box of its own, in both networks; as root and, where this user is root, as
an ordinary user too. Exits with 1 if any succeeds that is not inherent. ``--unboxed`` tries, as an
ordinary user and without any box, those that must succeed then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import resource
import secrets
import select
import shutil
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from airflow_agent_provider.agents.contract import AgentTask, Confinement, Network, Sandbox
from airflow_agent_provider.agents.failures import AgentFailure
from airflow_agent_provider.sandbox import size as size_module
from airflow_agent_provider.sandbox.box import Box, Program, open_box
from airflow_agent_provider.workspace.cleanup import remove_tree
from airflow_agent_provider.workspace.workspace import Workspace
from tests.sandbox.attempts import ATTEMPTS, MIB, Attempt
from tests.sandbox.scene import SECONDS, Scene, found_in, wait_for_none

#: Who an ordinary user is here.
USER = 12345
#: Somebody else on the same worker.
OTHER_USER = 54321
#: What of the file system the watch leaves free, less than what is free now.
_ROOM = 100 * MIB
#: What a worker may grow by while an agent floods its door, in bytes and threads.
_GROWTH = 400 * MIB
_THREADS = 200


@dataclass
class Row:
    """What came of one attempt.

    :param name: the attempt.
    :param note: what holds it back, or why it cannot be.
    :param successes: how it succeeded, by network.
    :param inherent: the networks in which it must.
    """

    name: str
    note: str
    successes: dict[str, list[str]]
    inherent: list[str]

    @property
    def failed(self) -> bool:
        """Whether it succeeded where it must not, or not where it must."""
        return any(bool(found) != (network in self.inherent)
                   for network, found in self.successes.items())  # fmt: skip

    @property
    def cell(self) -> str:
        """What the table says."""
        told = {network: "SUCCEEDS" if found else "blocked"
                for network, found in self.successes.items()}  # fmt: skip
        if len(set(told.values())) == 1:
            word = next(iter(told.values()))
            return f"{word} (inherent)" if word == "SUCCEEDS" and not self.failed else word
        return ", ".join(
            f"{network}: {word}{' (inherent)' if network in self.inherent else ''}"
            for network, word in told.items()
        )


class Stage:
    """One attempt under way, as the worker sees it."""

    def __init__(
        self, scene: Scene, attempt: Attempt, network: Network, number: int, sandbox: Sandbox
    ) -> None:
        self.scene = scene
        self.attempt = attempt
        self.token = secrets.token_hex(6)
        self.ended = threading.Event()
        self.found: list[str] = []
        self.peak = _peak()
        self.workspace: Workspace | None = None
        if attempt.workspace:
            self.workspace = scene.workspace(number)
            self.tree, self.home = self.workspace.path, self.workspace.home
        else:
            self.step = scene.root / f"step{number}"
            self.tree, self.home = self.step / "tree", self.step / "home"
            (self.tree / ".git").mkdir(parents=True)
            (self.tree / ".git/config").write_text("[core]\n")
            self.step.chmod(0o700)
        seen: tuple[Path, ...] = ()
        if self.workspace is not None:
            seen = tuple(self.workspace.object_folders)
        bounds = Confinement(sandbox, network, seen)
        self.task = AgentTask("x", self.tree, self.home,
                              confinement=replace(bounds, **attempt.bounds))  # fmt: skip

    def play(self) -> list[str]:
        """Let the agent try, do what a worker does, and return how it succeeded."""
        try:
            self.enter(self.attempt.script, during=self.attempt.during)
            if self.attempt.afterwards is not None:
                self.attempt.afterwards(self)
            self._search()
        finally:
            if self.workspace is not None:
                self.workspace.close()
        return [*self.found, *self.scene.effects()]

    def enter(self, script: str, during: Callable[[Stage], None] | None = None) -> None:
        """Run a script in a box on the workspace, as an SDK would that takes care of nothing."""
        program = Program(
            ("/bin/sh", "-c", script), folders=(self.scene.program,),
            environment={"TOKEN": self.token}, inherited=("MODEL_KEY", "MODEL_PORT"),
        )  # fmt: skip
        # The worker's own standard input is what it is before any box is opened.
        with self._kept_open() as stdin, open_box(self.task, program, self.scene.model) as box:
            told = {
                "MODEL_KEY": box.model_key,
                "MODEL_PORT": box.model_url.split(":")[2].partition("/")[0],
            }
            box.write_wrapper({**self.scene.environment(box.folder), **told})
            self._run(box, stdin, during)
        for left in wait_for_none(self.token, 10):
            self.found.append(f"process {left} outlives the box")

    @contextlib.contextmanager
    def _kept_open(self) -> Iterator[int]:
        """Have open what a worker has: its line to the supervisor, a terminal, files of its own."""
        secret = os.open(self.scene.secrets / "open/file.txt", os.O_RDONLY)
        os.set_inheritable(secret, True)
        if "TIOCSTI" in self.attempt.name:
            outside, inside = pty.openpty()
        else:
            # The stream itself, which this worker has as its own standard input, is given away.
            ours, theirs = socket.socketpair()
            ours.sendall(self.scene.canary.encode())
            outside, inside = ours.detach(), theirs.detach()
        before = os.dup(0)
        os.dup2(inside, 0)
        try:
            yield 0
        finally:
            if "TIOCSTI" in self.attempt.name:
                ready, _, _ = select.select([inside], [], [], 0)
                if ready:
                    self.found.append("typed into the terminal")
            else:
                ready, _, _ = select.select([outside], [], [], 0)
                if ready:
                    self.found.append("spoke to the task's supervisor")
            os.dup2(before, 0)
            for each in (before, outside, inside, secret):
                os.close(each)

    def _run(self, box: Box, stdin: int, during: Callable[[Stage], None] | None) -> None:
        process = subprocess.Popen(
            [str(box.wrapper)], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            close_fds=False, cwd=self.tree,
        )  # fmt: skip
        outside = threading.Thread(target=self._during, args=(during,))
        self.ended.clear()
        outside.start()
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            box.kill()
            output, _ = process.communicate(timeout=SECONDS)
        finally:
            self.ended.set()
            outside.join(SECONDS)
        self.took(output)
        self.found += [line for line in _lines(output) if line.startswith("GOT")][:5]

    def _during(self, during: Callable[[Stage], None] | None) -> None:
        if during is not None:
            during(self)

    # --- what the worker does ---------------------------------------------------------------

    def took(self, content: bytes) -> None:
        """Look at bytes that came out."""
        if self.scene.canary.encode() in content:
            self.found.append("read a secret")

    def report(self, success: str) -> None:
        """Note a success of the agent's."""
        self.found.append(success)

    def note(self, words: str) -> None:
        """Ignore: a refusal is what shall happen."""

    def within(self, seconds: float, work: Callable[[], object]) -> None:
        """Do ``work``; report it if it does not end in time. Its own failures are refusals."""

        def quietly() -> None:
            with contextlib.suppress(AgentFailure, OSError):
                work()

        thread = threading.Thread(target=quietly, daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            self.report(f"held the worker up for more than {seconds:g} s")

    def wait_for(self, path: Path) -> None:
        """Wait until the agent has made ``path``, or has ended."""
        while not path.exists() and not self.ended.wait(0.05):
            pass

    def run_as_another_user(self, program: Path) -> None:
        """Run ``program`` as somebody else on this worker, if this user may."""
        if os.geteuid() != 0 or not program.exists():
            return
        done = subprocess.run(
            [
                *("setpriv", "--reuid", str(OTHER_USER), "--regid", str(OTHER_USER)),
                # Its rights end only with the second program that it becomes.
                *("--clear-groups", "/bin/sh", "-c", 'exec "$0"', str(program)),
            ],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if "euid=0" in done.stdout:
            self.report("another user became root by it")

    def judge(self, commit: str) -> None:
        """Do with a step's commit what the worker does."""
        workspace = self.workspace
        assert workspace is not None
        self.took(workspace.patch(commit))
        workspace.changed_paths(commit)
        workspace.bundle(commit, self.scene.root / "x.bundle")
        workspace.push(commit, f"agents/{self.token}")

    def check_own_memory(self) -> None:
        """Report it if this worker has grown beyond measure."""
        # Whatever else this process has done before is none of the agent's.
        grown = _peak() - self.peak
        if grown > _GROWTH:
            self.report(f"made the worker take {grown // MIB} MiB")
        if threading.active_count() > _THREADS:
            self.report(f"made the worker take {threading.active_count()} threads")

    def _search(self) -> None:
        for folder in (self.tree, self.home):
            for name in found_in(folder, self.scene.canary):
                self.found.append(f"a secret in {name}")
            for path in folder.rglob("*"):
                with contextlib.suppress(OSError):
                    mode = path.lstat().st_mode
                    if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                        self.found.append(f"left {path.name} with mode {stat.S_IMODE(mode):o}")


def _peak() -> int:
    """Return the bytes that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _lines(output: bytes) -> list[str]:
    return output.decode(errors="replace").splitlines()


def play(only: str = "", sandbox: Sandbox = Sandbox.REQUIRED) -> list[Row]:
    """Try everything as this user.

    :param only: a part of the names of those to try.
    :param sandbox: whether there is a box; without one, what would do harm is left out.
    """
    rows = []
    root = Path(tempfile.mkdtemp(prefix="hostile-", dir="/var/tmp"))
    number = 0
    with _removed(root), _hurried(), Scene(root) as scene:
        for attempt in ATTEMPTS:
            if only not in attempt.name or (sandbox is Sandbox.OFF and not attempt.unboxed):
                continue
            successes = {}
            for network in Network:
                number += 1
                stage = Stage(scene, attempt, network, number, sandbox)
                successes[network.value] = stage.play()
            note = next(iter(attempt.inherent.values()), attempt.note)
            inherent = list(Network) if sandbox is Sandbox.OFF else attempt.inherent
            rows.append(Row(attempt.name, note, successes, [str(each) for each in inherent]))
    return rows


@contextlib.contextmanager
def _removed(root: Path) -> Iterator[None]:
    try:
        yield
    finally:
        remove_tree(root)


@contextlib.contextmanager
def _hurried() -> Iterator[None]:
    """Look at sizes more often, and leave less room, so that nothing here takes long."""
    before = size_module._INTERVAL, size_module._SHARE, size_module._floor
    size_module._INTERVAL, size_module._SHARE = 0.2, 1
    size_module._floor = lambda folder: (size_module._free(folder)[0] - _ROOM, 0)
    try:
        yield
    finally:
        size_module._INTERVAL, size_module._SHARE, size_module._floor = before


def play_as_user(only: str = "", sandbox: Sandbox = Sandbox.REQUIRED) -> list[Row]:
    """Try everything as an ordinary user; for root only.

    The interpreter and this repository are shown to that user where it may read them.
    """
    folder = Path(tempfile.mkdtemp(prefix="hostile-user-", dir="/var/tmp"))
    shown = {
        "python": Path(sys.base_prefix).resolve(),
        "packages": Path(sysconfig.get_paths()["purelib"]),
        "code": Path(__file__).resolve().parents[2],
    }
    try:
        folder.chmod(0o755)
        for name in shown:
            (folder / name).mkdir(mode=0o755)
        mounts = [f"mount --bind '{place}' '{folder / name}'" for name, place in shown.items()]
        interpreter = Path(os.path.realpath(sys.executable)).relative_to(shown["python"])
        command = [
            *("setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups"),
            *("--inh-caps=-all", "--bounding-set=-all"),
            *(str(folder / "python" / interpreter), "-m", "tests.sandbox.hostile"),
            *("--rows", "--only", only, *(["--unboxed"] if sandbox is Sandbox.OFF else [])),
        ]
        done = subprocess.run(
            [
                "unshare",
                "--mount",
                "/bin/sh",
                "-ec",
                "; ".join([*mounts, 'exec "$@"']),
                "sh",
                *command,
            ],
            cwd="/",
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "HOME": "/nonexistent",
                "PYTHONPATH": f"{folder}/code:{folder}/packages",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
            timeout=1800,
        )
    finally:
        # What was mounted there is so in that other process's view alone.
        for name in shown:
            with contextlib.suppress(OSError):
                (folder / name).rmdir()
        with contextlib.suppress(OSError):
            folder.rmdir()
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def both(only: str = "") -> dict[str, list[Row]]:
    """Try everything as whoever this user can be, at the same time."""
    if os.geteuid() != 0:
        return {"ordinary user": play(only)}
    with ThreadPoolExecutor(1) as pool:
        user = pool.submit(play_as_user, only)
        # In the main thread: this process's boxes end with the thread that opens them.
        return {"root": play(only), "ordinary user": user.result()}


def unboxed(only: str = "") -> dict[str, list[Row]]:
    """Try as an ordinary user, without any box, what must succeed then."""
    play_it = play_as_user if os.geteuid() == 0 else play
    return {"without a box": play_it(only, Sandbox.OFF)}


def print_table(found: dict[str, list[Row]]) -> bool:
    """Print the table; return whether all is as it must be."""
    users = list(found)
    print(f"| attempt | {' | '.join(users)} | note |")
    print(f"|---|{'---|' * len(users)}---|")
    for rows in zip(*found.values(), strict=True):
        cells = " | ".join(row.cell for row in rows)
        print(f"| {rows[0].name} | {cells} | {rows[0].note} |")
    bad = [(user, row) for user, rows in found.items() for row in rows if row.failed]
    for user, row in bad:
        print(f"\nNOT AS IT MUST BE, {user}: {row.name}: {row.successes}")
    count = sum(len(rows) for rows in found.values())
    print(f"\n{count} attempts in both networks, {len(bad)} not as they must be")
    return not bad and count > 0


def main() -> None:
    """Parse the arguments, try, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the names of those to try")
    parser.add_argument("--unboxed", action="store_true", help="without a box; all must succeed")
    parser.add_argument("--rows", action="store_true", help="as this user; prints JSON")
    arguments = parser.parse_args()
    if arguments.rows:
        sandbox = Sandbox.OFF if arguments.unboxed else Sandbox.REQUIRED
        rows = play(arguments.only, sandbox)
        print(json.dumps([asdict(row) for row in rows]))
        return
    if shutil.which("bwrap") is None:
        sys.exit("bubblewrap is needed; on Debian: apt-get install bubblewrap")
    started = time.monotonic()
    good = print_table((unboxed if arguments.unboxed else both)(arguments.only))
    print(f"in {time.monotonic() - started:.0f} s")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
