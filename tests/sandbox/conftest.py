"""Boxes to try things in."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_agent_provider.agents.contract import AgentTask
from airflow_agent_provider.sandbox.bounds import interpreter
from airflow_agent_provider.sandbox.box import Box, Program, open_box
from airflow_agent_provider.sandbox.door import Upstream

SECONDS = 60


@pytest.fixture
def task(tmp_path: Path) -> AgentTask:
    """Return a task with a workspace that looks like a repository."""
    workspace = tmp_path / "step" / "tree"
    (workspace / ".git").mkdir(parents=True)
    (workspace / ".git" / "config").write_text("[core]\n")
    return AgentTask("x", workspace, tmp_path / "step" / "home")


def confined(task: AgentTask, **bounds: Any) -> AgentTask:
    return replace(task, confinement=replace(task.confinement, **bounds))


def enter(box: Box, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the box's program to its end, and return what it wrote."""
    arguments = {"stdin": subprocess.DEVNULL, **more}
    return subprocess.run(
        [str(box.wrapper)], capture_output=True, text=True, timeout=SECONDS, **arguments
    )


Shell = Callable[..., str]


@pytest.fixture
def shell(task: AgentTask) -> Shell:
    """Return what runs a shell script in a box of its own and returns its output."""

    def run(
        script: str,
        *arguments: str,
        task: AgentTask = task,
        upstream: Upstream | None = None,
        environment: dict[str, str] | None = None,
        **more: Any,
    ) -> str:
        program = Program(
            ("/bin/sh", "-c", script, "sh", *arguments), environment=environment or {}
        )
        with open_box(task, program, upstream) as box:
            done = enter(box, **more)
        return done.stdout + done.stderr

    return run


def python(code: str) -> str:
    """Return a shell script that runs Python code; arguments follow as ``"$@"``."""
    return f'exec {shlex.quote(str(interpreter()))} -IS -c {shlex.quote(code)} "$@"'
