"""The inlet: how an SDK out here reaches a program that listens in its box."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from airflow_agent_provider.agents.contract import AgentTask, Network, Sandbox
from airflow_agent_provider.sandbox.bounds import interpreter
from airflow_agent_provider.sandbox.box import Box, Program, open_box

from .conftest import SECONDS, confined

pytestmark = pytest.mark.integration

PORT = 47115
#: Answers each connection with what it said, in capitals.
ECHO = f"""
import socket
server = socket.create_server(("127.0.0.1", {PORT}))
print("ready", flush=True)
while True:
    client, _ = server.accept()
    with client:
        client.sendall(client.recv(100).upper())
"""


@contextmanager
def running(box: Box) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(box.wrapper)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait(SECONDS)
        process.stdout.close()


def ask(path: Path, words: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(str(path))
        client.sendall(words)
        return client.recv(100)


def program(code: str = ECHO) -> Program:
    return Program((str(interpreter()), "-IS", "-c", code), port=PORT)


def test_it_leads_to_the_programs_port_and_to_nothing_of_the_workers(task: AgentTask) -> None:
    # Whatever listens on the worker's own port of that number is not meant.
    with socket.create_server(("127.0.0.1", PORT)), open_box(task, program()) as box:
        assert box.inlet is not None
        with running(box):
            assert [ask(box.inlet, word) for word in (b"one", b"two")] == [b"ONE", b"TWO"]
    assert not box.inlet.exists()


def test_the_program_sees_neither_the_socket_nor_its_descriptor(task: AgentTask) -> None:
    look = (
        "import os; print('ready', flush=True); "
        "print(sorted(os.listdir('/proc/self/fd')), os.listdir('/run'), flush=True); "
        "os.kill(os.getpid(), 19)"
    )
    with open_box(task, program(look)) as box, running(box) as process:
        assert process.stdout is not None
        seen = process.stdout.readline()
        assert box.inlet is not None
        # The listing's own descriptor is the fourth.
        assert seen == "['0', '1', '2', '3'] ['pump.py']\n"
        assert box.folder.exists()
        assert str(box.folder) not in seen


def test_a_program_that_is_started_again_gets_it_again(task: AgentTask) -> None:
    with open_box(task, program()) as box:
        assert box.inlet is not None
        for word in (b"one", b"two"):
            with running(box):
                assert ask(box.inlet, word) == word.upper()
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                try:
                    ask(box.inlet, b"x")
                except OSError:
                    break


@pytest.mark.parametrize(
    "bounds", [{"sandbox": Sandbox.OFF}, {"network": Network.OPEN}], ids=["unboxed", "open"]
)
def test_there_is_none_where_the_port_is_the_workers(
    task: AgentTask, bounds: dict[str, object]
) -> None:
    with open_box(confined(task, **bounds), program()) as box:
        assert box.inlet is None
        with running(box), socket.create_connection(("127.0.0.1", PORT), SECONDS) as client:
            client.sendall(b"one")
            assert client.recv(100) == b"ONE"


def test_a_program_without_a_port_has_none(task: AgentTask) -> None:
    with open_box(task, Program(("/bin/true",))) as box:
        assert box.inlet is None
        assert subprocess.run([str(box.wrapper)], check=False, timeout=SECONDS).returncode == 0
        assert sorted(os.listdir(box.folder)) == ["agent", "spec.json"]  # noqa: PTH208
