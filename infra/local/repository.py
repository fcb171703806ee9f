"""A bare clone of the demo's own: the only repository that a demo pushes to."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from infra.local.aws import ROOT

_IDENTITY = ("-c", "user.name=Demo", "-c", "user.email=demo@localhost")
_SAMPLE = {
    "README.md": "# Sample\n\nA small project for the agents to work on.\n",
    "pyproject.toml": '[project]\nname = "sample"\nversion = "0.3.0"\n',
}


class RepositoryUnusable(RuntimeError):
    """The repository cannot be worked on; the text says why."""


def make_clone(source: str, target: Path) -> str:
    """Make a bare clone of the default branch that knows no other repository; return its name.

    :param source: path or URL of a repository; empty takes the project's own, or a small sample
        where the project is no repository.
    :param target: where the clone shall be.
    :raises RepositoryUnusable: if the source does not exist or has no commit.
    """
    with tempfile.TemporaryDirectory() as folder:
        if not source:
            own = (ROOT / ".git").exists()
            source = str(ROOT) if own else str(_make_sample(Path(folder) / "sample"))
        # Other branches are of no use here, and one that is called ``cursor`` or ``agents`` would
        # leave no room for branches below that name.
        _git(None, "clone", "--quiet", "--bare", "--single-branch", source, str(target))
    # Without a remote, nothing can be pushed anywhere else by mistake.
    _git(target, "remote", "remove", "origin")
    try:
        commit = _git(target, "rev-parse", "--verify", "HEAD^{commit}")
    except RepositoryUnusable as error:
        raise RepositoryUnusable(f"{source} has no commit on its default branch") from error
    return _default_branch(target, commit)


def git(folder: Path, *arguments: str) -> str:
    """Run git in a repository, and return what it prints.

    :raises RepositoryUnusable: if it fails; the text has its words.
    """
    return _git(folder, *arguments)


def _default_branch(target: Path, commit: str) -> str:
    try:
        return _git(target, "symbolic-ref", "--short", "HEAD")
    except RepositoryUnusable:
        # The source had no branch checked out, as on CI servers.
        _git(target, "update-ref", "refs/heads/demo", commit)
        _git(target, "symbolic-ref", "HEAD", "refs/heads/demo")
        return "demo"


def _make_sample(folder: Path) -> Path:
    folder.mkdir()
    _git(folder, "init", "--quiet", "--initial-branch=main")
    for name, text in _SAMPLE.items():
        (folder / name).write_text(text)
    _git(folder, "add", "--all")
    _git(folder, *_IDENTITY, "commit", "--quiet", "--message=Start")
    return folder


def _git(folder: Path | None, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        # A repository that asks for a password is refused, as nobody is there to answer.
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
        check=False,
    )
    if done.returncode != 0:
        raise RepositoryUnusable(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()
