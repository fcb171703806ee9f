"""Runs the ``git`` program on data that an agent may have prepared.

Held here: no hook, no fsmonitor, no pager or editor, no system or user configuration, no prompt,
no submodule, no automatic maintenance; a git directory that is named and never discovered; a bound
on time; and error texts without credentials. Our git directories lie outside the working tree (see
:mod:`airflow_agent_provider.workspace.workspace`), so that neither their configuration nor their
attributes come from the agent: a filter, textconv or merge driver that ``.gitattributes`` of the
tree names is defined nowhere and hence does not run.

Where it runs is up to a :class:`GitRunner`: beside this process, or in a box of the sandbox, which
holds what none of the above can: a fault of git's own, or a way to a program that nobody thought
of. Calls that need credentials never go into the box.

Left to the box of the sandbox: an agent that runs as the worker's own user can write to any file of
that user, our git directories included.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

#: Seconds for a git command that works on local disk.
LOCAL_TIMEOUT = 600.0
#: Seconds between the polite and the hard end of a command that took too long.
_END_GRACE = 2.0

_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.pager=cat",
    "core.editor=true",
    "core.quotePath=false",
    "commit.gpgSign=false",
    "tag.gpgSign=false",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "push.recurseSubmodules=no",
    "diff.ignoreSubmodules=all",
    "protocol.ext.allow=never",
    "safe.bareRepository=explicit",
    "advice.addEmbeddedRepo=false",
    "gc.auto=0",
    "maintenance.auto=false",
    # A killed fetch must not leave a commit without its trees: packs arrive whole, loose ones not.
    "fetch.unpackLimit=1",
    # A connection on which nothing comes for a minute is dead.
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=60",
    "init.defaultBranch=main",
)

#: What git and ssh may need of the worker's environment: never a credential of Airflow or AWS.
_INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
)

_FIXED = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    "GIT_NO_REPLACE_OBJECTS": "1",
    # Error texts are classified by their words.
    "LC_ALL": "C",
}

_URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_NAME = re.compile(r"TOKEN|PASSWORD|SECRET", re.IGNORECASE)


class GitError(Exception):
    """A git command failed.

    :param reason: one line: the command and what git said of it, without credentials.
    :param stderr: all that git said, without credentials.
    :param returncode: the exit code; negative for a signal, None where git did not end in time.
    """

    def __init__(self, reason: str, *, stderr: str = "", returncode: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.stderr = stderr
        self.returncode = returncode

    @property
    def timed_out(self) -> bool:
        """Whether the command was ended because its time was over."""
        return self.returncode is None


class GitRunner(Protocol):
    """Runs git, somewhere."""

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

        :param command: git and its arguments.
        :param cwd: the folder to run in.
        :param env: its variables, beside those that any program needs.
        :param stdin: what it reads.
        :param timeout: seconds; then it is ended, with its children.
        :raises subprocess.TimeoutExpired: if it takes longer.
        :raises OSError: if it cannot be run.
        """

    def close(self) -> None:
        """End whatever runs; the next command starts anew. Harmless a second time."""


class GitRunners(Protocol):
    """Makes a runner for one workspace."""

    def __call__(self, writable: Sequence[Path], readable: Sequence[Path]) -> GitRunner:
        """Return the runner.

        :param writable: the folders that git may write.
        :param readable: what in them, or beside them, it may only read.
        """


class PlainRunner:
    """Runs git beside this process, with what it and ssh may need of the worker's environment."""

    def run(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: bytes,
        timeout: float,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command; see :meth:`GitRunner.run`."""
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**inherited, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Its own group, so that git's helpers end with it; and no terminal to ask at.
            start_new_session=True,
        )
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        except BaseException:
            _end(process)
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def close(self) -> None:
        """Do nothing: each command ends by itself."""


#: Runs git beside this process.
PLAIN = PlainRunner()


@dataclass(frozen=True)
class Git:
    """One git directory, and the working tree that goes with it.

    :param git_dir: the git directory.
    :param work_tree: the working tree; None for commands that need none.
    :param env: more environment, as the credentials of network calls.
    :param timeout: seconds that a command may take.
    :param runner: what runs the commands.
    """

    git_dir: Path
    work_tree: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    timeout: float = LOCAL_TIMEOUT
    runner: GitRunner = field(default=PLAIN, compare=False, repr=False)

    def having(self, *, env: Mapping[str, str], timeout: float | None = None) -> Git:
        """Return the same with more environment, and another timeout in seconds if given."""
        return replace(self, env={**self.env, **env}, timeout=timeout or self.timeout)

    def run(self, *args: str, stdin: bytes = b"", accept: Sequence[int] = (0,)) -> bytes:
        """Run a git command and return what it printed.

        :param args: the command and its arguments.
        :param stdin: what the command reads.
        :param accept: the exit codes that are no failure.
        :raises GitError: if it fails or takes too long.
        """
        return self.complete(*args, stdin=stdin, accept=accept).stdout

    def complete(
        self, *args: str, stdin: bytes = b"", accept: Sequence[int] = (0,)
    ) -> subprocess.CompletedProcess[bytes]:
        """As :meth:`run`, and return the exit code too."""
        env = {"GIT_DIR": str(self.git_dir), **self.env}
        if self.work_tree:
            env["GIT_WORK_TREE"] = str(self.work_tree)
        return run_git(
            args,
            cwd=self.work_tree or self.git_dir,
            env=env,
            stdin=stdin,
            timeout=self.timeout,
            accept=accept,
            runner=self.runner,
        )

    def line(self, *args: str, stdin: bytes = b"") -> str:
        """Run a git command that prints one line, and return it."""
        return os.fsdecode(self.run(*args, stdin=stdin)).strip()

    def names(self, *args: str, stdin: bytes = b"", accept: Sequence[int] = (0,)) -> list[str]:
        """Run a git command that prints names which end in NUL (``-z``), and return them."""
        return split_names(self.run(*args, stdin=stdin, accept=accept))

    def commit(self, name: str) -> str | None:
        """Return the full id of the commit that ``name`` stands for, None if there is none."""
        done = self.complete(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}",
            accept=(0, 1, 128),
        )  # fmt: skip
        return done.stdout.decode().strip() if done.returncode == 0 else None

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Return whether the commit ``newer`` contains ``older``."""
        done = self.complete("merge-base", "--is-ancestor", older, newer, accept=(0, 1))
        return done.returncode == 0


def split_names(output: bytes) -> list[str]:
    """Return the NUL-terminated names of git's output; names that are not UTF-8 survive."""
    return [os.fsdecode(name) for name in output.split(b"\0") if name]


def join_names(names: Iterable[str]) -> bytes:
    """Return ``names`` as git reads them under ``-z``."""
    return b"".join(os.fsencode(name) + b"\0" for name in names)


def run_git(
    args: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout: float = LOCAL_TIMEOUT,
    accept: Sequence[int] = (0,),
    runner: GitRunner = PLAIN,
) -> subprocess.CompletedProcess[bytes]:
    """Run git with the settings of this module.

    :param args: the command and its arguments.
    :param cwd: the folder to run in.
    :param env: more environment.
    :param stdin: what the command reads.
    :param timeout: seconds; then the command and its children are ended.
    :param accept: the exit codes that are no failure.
    :param runner: what runs it.
    :raises GitError: if it fails, takes too long or cannot be started.
    """
    extra = dict(env or {})
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    try:
        done = runner.run(
            ["git", *settings, *args],
            cwd=cwd,
            env={**_FIXED, **extra},
            stdin=stdin,
            timeout=timeout,
        )
    except FileNotFoundError as error:
        missing = "the folder " + str(cwd) if not cwd.is_dir() else "the program git"
        raise GitError(f"git {args[0]}: {missing} does not exist", returncode=127) from error
    except subprocess.TimeoutExpired:
        raise GitError(f"git {args[0]} did not end within {timeout:g} s") from None
    except OSError as error:
        raise GitError(f"git {args[0]}: {error}", returncode=126) from error
    text = redact(done.stderr.decode(errors="replace").strip(), extra)
    if done.returncode not in accept:
        reason = f"git {args[0]}: {_essence(text) or f'exit code {done.returncode}'}"
        raise GitError(reason, stderr=text, returncode=done.returncode)
    return done


def redact(text: str, env: Mapping[str, str] | None = None) -> str:
    """Return ``text`` without the credentials of URLs and without the secrets of ``env``."""
    for name, value in (env or {}).items():
        if value and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return _URL_CREDENTIALS.sub("***@", text)


def _essence(stderr: str) -> str:
    # The first error or fatal line names the cause; what follows is advice.
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [
        line for line in lines if line.startswith(("fatal:", "error:", "remote:", "ERROR", "! ["))
    ]
    return (telling or lines or [""])[0]


def _end(process: subprocess.Popen[bytes]) -> None:
    # SIGTERM first: git then removes its lock files.
    for number, patience in ((signal.SIGTERM, _END_GRACE), (signal.SIGKILL, _END_GRACE)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=patience)
            return
