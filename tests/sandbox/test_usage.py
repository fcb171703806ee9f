"""The watch on what a box's processes take together, where no cgroup holds them."""

from __future__ import annotations

import os
import subprocess

import pytest

from airflow_agent_provider.agents.contract import AgentTask
from airflow_agent_provider.agents.failures import PolicyViolation
from airflow_agent_provider.sandbox import box as box_module
from airflow_agent_provider.sandbox import usage as usage_module
from airflow_agent_provider.sandbox.box import Program, open_box
from airflow_agent_provider.sandbox.cgroups import Cgroup

from .conftest import SECONDS, confined, python

pytestmark = pytest.mark.integration
MIB = 1024**2

#: One process with a clean environment and a name that looks like another field of its status.
SHARING = """
import ctypes, os, sys, time
if len(sys.argv) < 2:
    os.execve(sys.executable, [sys.executable, "-IS", "-c", {code!r}, "again"], {{}})
ctypes.CDLL(None).prctl(15, b") R 1 1 (", 0, 0, 0)
block = bytearray(100 * 1024**2)
for _ in range({count}):
    if os.fork() == 0:
        if {write}:
            for place in range(0, len(block), 4096):
                block[place] = 1
        time.sleep(600)
        os._exit(0)
time.sleep({seconds})
print("through")
os.kill(-1, 9)
"""


@pytest.fixture(autouse=True)
def no_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_module, "make_cgroup", lambda *_: Cgroup())
    monkeypatch.setattr(usage_module, "_INTERVAL", 0.2)


def play(task: AgentTask, **how: object) -> tuple[str, object]:
    inner = SHARING.format(code="", **how)
    code = SHARING.format(code=inner, **how)
    with open_box(task, Program(("/bin/sh", "-c", python(code)))) as box:
        done = subprocess.run([str(box.wrapper)], capture_output=True, timeout=SECONDS, text=True)
        if "through" not in done.stdout and box._usage is not None:
            box._usage._thread.join(SECONDS)
        return done.stdout + done.stderr, box.violation


def test_memory_of_many_processes_ends_the_agent(task: AgentTask) -> None:
    said, violation = play(confined(task, memory=350 * MIB), count=5, write=True, seconds=600)
    assert isinstance(violation, PolicyViolation), said
    assert "the 350 MiB that [agents] sandbox_memory allows" in violation.reason


def test_what_processes_share_counts_once(task: AgentTask) -> None:
    said, violation = play(confined(task, memory=350 * MIB), count=6, write=False, seconds=3)
    assert violation is None
    assert "through" in said


def test_roots_processes_are_counted(task: AgentTask) -> None:
    if os.geteuid() != 0:
        pytest.skip("those of an ordinary user are counted by the kernel")
    said, violation = play(confined(task, processes=30), count=60, write=False, seconds=600)
    assert isinstance(violation, PolicyViolation), said
    assert "more than the 30 that [agents] sandbox_processes allows" in violation.reason
