"""Whatever is killed, nothing of a box outlives it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_agent_provider.agents.contract import AgentTask, Network
from airflow_agent_provider.sandbox.box import Program, open_box
from airflow_agent_provider.sandbox.door import Upstream

from .conftest import confined, enter, python

pytestmark = pytest.mark.integration
SECONDS = 30.0

#: Everything that a program may do so that it is not found: each sleeps for ever.
HIDES = """
nohup sleep {token}1 >/dev/null 2>&1 &
setsid sleep {token}2 &
(setsid sh -c 'sleep {token}3 & sleep {token}4' &) &
sh -c "trap '' TERM HUP INT QUIT; sleep {token}5; sleep {token}6" &
env -i setsid nohup sleep {token}7 >/dev/null 2>&1 </dev/null &
(cd / && exec -a innocent setsid env -i sleep {token}8) >/dev/null 2>&1 &
exec 3>&1; sleep {token}9 &
until [ "$(ls -d /proc/[0-9]* | wc -l)" -ge 10 ]; do sleep 0.05; done
touch ready
trap '' TERM HUP INT
while :; do sleep {token}0; done
"""
WORKER = """
import subprocess, sys, threading, time
from dataclasses import replace
from pathlib import Path
from airflow_agent_provider.agents.contract import AgentTask, Confinement, Network
from airflow_agent_provider.sandbox.box import Program, open_box
from airflow_agent_provider.sandbox.door import Upstream

workspace, home, network, script = sys.argv[1:]
task = AgentTask("x", Path(workspace), Path(home),
                 confinement=Confinement(network=Network(network)))
box = open_box(task, Program(("/bin/bash", "-c", script)), Upstream("http://127.0.0.1:9/v1"))
process = subprocess.Popen([str(box.wrapper)], stdin=subprocess.PIPE)
print(process.pid, flush=True)
process.wait()
"""


def processes(token: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if token.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def eventually(look: Callable[[], object], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.02)


@pytest.fixture
def token() -> str:
    return f"47{random.randrange(10**9, 10**10)}"


def first_process(bwrap: int) -> int:
    """Return the first process of the box that this bwrap waits for."""
    children = Path(f"/proc/{bwrap}/task/{bwrap}/children").read_text().split()
    return int(children[0])


KILLS: dict[str, Callable[[int, int], None]] = {
    "worker, SIGKILL": lambda worker, bwrap: os.kill(worker, signal.SIGKILL),
    "worker, SIGTERM": lambda worker, bwrap: os.kill(worker, signal.SIGTERM),
    "bwrap, SIGKILL": lambda worker, bwrap: os.kill(bwrap, signal.SIGKILL),
    "first process, SIGKILL": lambda worker, bwrap: os.kill(first_process(bwrap), signal.SIGKILL),
}


@pytest.mark.parametrize("network", list(Network))
@pytest.mark.parametrize("kill", KILLS)
def test_a_kill_in_mid_work_leaves_nothing(
    task: AgentTask, token: str, kill: str, network: Network
) -> None:
    script = HIDES.format(token=token)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(task.workspace), str(task.home), network.value, script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stdout is not None
        bwrap = int(worker.stdout.readline())
        eventually((task.workspace / "ready").exists)
        assert len(processes(token)) >= 10
        KILLS[kill](worker.pid, bwrap)
        # The worker's own line has the script in it, and goes when it has seen the end.
        eventually(lambda: not [p for p in processes(token) if p != worker.pid])
        worker.wait(SECONDS)
    finally:
        worker.kill()
        worker.wait()
        for left in processes(token):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)


def hiding(task: AgentTask, token: str) -> Program:
    return Program(("/bin/bash", "-c", HIDES.format(token=token)))


def running(task: AgentTask, token: str) -> list[int]:
    return [pid for pid in processes(token) if pid != os.getpid()]


@pytest.mark.parametrize("how", ["kill", "close"])
def test_killing_and_closing_the_box_end_all_of_it(task: AgentTask, token: str, how: str) -> None:
    with open_box(task, hiding(task, token), Upstream("http://127.0.0.1:9/v1")) as box:
        process = subprocess.Popen([str(box.wrapper)], stdin=subprocess.DEVNULL)
        eventually((task.workspace / "ready").exists)
        started = time.monotonic()
        getattr(box, how)()
        eventually(lambda: not running(task, token))
        assert time.monotonic() - started < SECONDS
        assert process.wait(SECONDS) == -signal.SIGKILL
        assert not box.folder.exists() or how == "kill"


def test_a_killed_box_can_be_entered_again(task: AgentTask) -> None:
    with open_box(task, Program(("/bin/echo", "again"))) as box:
        box.kill()
        assert enter(box).stdout == "again\n"


def test_it_dies_with_the_thread_that_started_it(task: AgentTask, token: str) -> None:
    """So a program must be started from a thread that lives as long as it shall."""
    started: list[subprocess.Popen[bytes]] = []
    leave = threading.Event()

    def work() -> None:
        started.append(subprocess.Popen([str(box.wrapper)], stdin=subprocess.DEVNULL))
        leave.wait(SECONDS)

    with open_box(task, hiding(task, token)) as box:
        thread = threading.Thread(target=work)
        thread.start()
        eventually((task.workspace / "ready").exists)
        assert started[0].poll() is None
        leave.set()
        thread.join()
        assert started[0].wait(SECONDS) == -signal.SIGKILL
        eventually(lambda: not running(task, token))


def test_a_box_whose_first_process_is_stopped_by_a_tracer_still_ends(
    task: AgentTask, token: str
) -> None:
    code = (
        "import ctypes, os, sys, time\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.ptrace(16, 1, None, None) != 0: print('refused', ctypes.get_errno())\n"
        "open('ready', 'w').close()\n"
        f"time.sleep(int('{token}'[:4]))"
    )
    with open_box(task, Program(("/bin/sh", "-c", python(code)))) as box:
        process = subprocess.Popen([str(box.wrapper)], stdin=subprocess.DEVNULL)
        eventually((task.workspace / "ready").exists)
        inside = first_process(process.pid)
        box.kill()
        assert process.wait(SECONDS) == -signal.SIGKILL
        eventually(lambda: not Path(f"/proc/{inside}").exists())


def test_signals_from_inside_reach_nobody_outside(task: AgentTask, token: str) -> None:
    victim = subprocess.Popen(["sleep", f"{token}"])
    try:
        script = f"kill -9 {victim.pid} {os.getpid()}; kill -9 1; kill -STOP 1; kill -9 -1; echo on"
        with open_box(
            confined(task, network=Network.OPEN), Program(("/bin/sh", "-c", script))
        ) as box:
            enter(box)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
