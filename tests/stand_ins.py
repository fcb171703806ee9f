"""What tests of hosted agents share: a real git remote on disk, and scripts as plain values."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from airflow_agent_provider.rehearsal.script import Script

T = TypeVar("T")

PLAN_PROMPT = "Plan it.\n\nStep: plan of workflow feature, run manual__1\n"


@dataclass(frozen=True)
class Remote:
    """A bare repository with one commit on ``main``."""

    path: Path

    @property
    def url(self) -> str:
        return str(self.path)

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def branches(self) -> list[str]:
        return self.git("for-each-ref", "--format=%(refname:short)", "refs/heads").split()


def make_remote(folder: Path) -> Remote:
    work = folder / "work"
    work.mkdir(parents=True)
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"]
    (work / "README.md").write_text("A repository.\n")
    for arguments in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        [*identity, "commit", "--quiet", "--message=Begin"],
        ["clone", "--quiet", "--bare", ".", str(folder / "remote.git")],
    ):
        subprocess.run(["git", *arguments], cwd=work, check=True)
    return Remote(folder / "remote.git")


def script(*plan: Any, **steps: list[Any]) -> Script:
    """Return a script: the actions of step ``plan``, and those of more steps by name."""
    return Script.model_validate({"steps": {"plan": list(plan), **steps}})


def eventually(look: Callable[[], T], timeout: float = 20.0) -> T:
    """Return the first true value of ``look`` within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := look()):
        assert time.monotonic() < deadline, f"still {value!r} after {timeout} s"
        time.sleep(0.05)
    return value
