"""A repository with a remote on disk, and workspaces on it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.workspace.git import GitRunners
from airflow_agent_provider.workspace.repository import Repository, resolve_base
from airflow_agent_provider.workspace.workspace import Workspace

RUN_ID = "manual__2026-11-23T10:00:00+00:00"


class Origin:
    """A bare repository, and a clone of it to push from, by git as a user has it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "origin.git"
        self.clone = folder / "clone"
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.org",
            "GIT_COMMITTER_NAME": "Ada",
            "GIT_COMMITTER_EMAIL": "ada@example.org",
        }
        folder.mkdir(exist_ok=True)
        self.git("init", "-q", "--bare", "-b", "main", str(self.path), cwd=folder)
        self.git("init", "-q", "-b", "main", str(self.clone), cwd=folder)
        self.git("remote", "add", "origin", str(self.path))

    def git(self, *args: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            ["git", *args],
            cwd=cwd or self.clone,
            env=self.env,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def commit(self, files: dict[str, str], branch: str = "main") -> str:
        """Commit files in the clone, push them to ``branch``, and return the commit."""
        for name, text in files.items():
            path = self.clone / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "-q", "--allow-empty", "-m", f"Write {len(files)} files")
        self.git("push", "-q", "origin", f"HEAD:refs/heads/{branch}")
        return self.git("rev-parse", "HEAD")

    def at(self, ref: str) -> str:
        return self.git("rev-parse", ref, cwd=self.path)


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    made = Origin(tmp_path / "user")
    made.commit({"README.md": "# Demo\n", "src/app.py": "one\ntwo\nthree\n"})
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "worker"


def attempt_of(step_id: str, number: int = 1) -> AttemptKey:
    return AttemptKey(StepKey("demo", RUN_ID, step_id), number)


@pytest.fixture
def attempt() -> Callable[..., AttemptKey]:
    return attempt_of


@pytest.fixture
def runners() -> GitRunners | None:
    """Return what runs our own git: none, so that it runs beside this process."""
    return None


@pytest.fixture
def prepare(
    origin: Origin, root: Path, runners: GitRunners | None
) -> Iterator[Callable[..., Workspace]]:
    """Return a function that prepares a step's workspace on the origin's main branch."""
    made: list[Workspace] = []

    def make(step_id: str = "plan", number: int = 1, **kwargs: object) -> Workspace:
        repository = Repository(str(origin.path))
        arguments = {
            "root": root,
            "attempt": attempt_of(step_id, number),
            "repository": repository,
            "runners": runners,
            **kwargs,
        }
        if "base" not in arguments:
            arguments["base"] = resolve_base(repository, root / "mirrors")
        made.append(Workspace.prepare(**arguments))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for workspace in made:
        workspace.close()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Return a file that programs write which an agent has planted, if they ever run."""
    folder = tmp_path / "planted"
    folder.mkdir()
    return folder / "canary"
