"""The pump between the box and what lies outside of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_agent_provider.sandbox import pump
from airflow_agent_provider.sandbox.pump import connect, listen, serve

pytestmark = pytest.mark.integration
SECONDS = 30


def echo(server: socket.socket) -> None:
    """Answer each connection with all that it sent, once it has sent all."""
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client:
            content = b""
            while piece := client.recv(65536):
                content += piece
            client.sendall(content)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with listen(f"unix:{tmp_path}/echo.sock") as server:
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        yield tmp_path / "echo.sock"


def pumped(target: str) -> tuple[socket.socket, int]:
    server = listen("tcp:0")
    threading.Thread(target=serve, args=(server, target), daemon=True).start()
    return server, int(server.getsockname()[1])


def exchange(port: int, content: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as client:
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
        return answer


def test_both_directions_and_half_closed_connections(place: Path) -> None:
    server, port = pumped(f"unix:{place}")
    with server:
        content = bytes(range(256)) * 4000
        assert exchange(port, content) == content
        assert exchange(port, b"") == b""


def test_many_at_a_time_and_one_after_the_other(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "_MOST", 3)
    server, port = pumped(f"unix:{place}")
    with server:
        for _ in range(20):
            assert exchange(port, b"x") == b"x"
        # Idle ones take all the room; the next waits until one is gone, and is not lost.
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        answers: list[bytes] = []
        late = threading.Thread(target=lambda: answers.append(exchange(port, b"late")))
        late.start()
        late.join(0.5)
        assert not answers
        for each in idle:
            each.close()
        late.join(SECONDS)
        assert answers == [b"late"]


def test_nobody_there_is_a_closed_connection(tmp_path: Path) -> None:
    server, port = pumped(f"unix:{tmp_path}/none")
    with server:
        assert exchange(port, b"") == b""


@pytest.mark.parametrize("kind", ["link", "file", "folder", "link in the middle"])
def test_what_stands_in_the_sockets_place_is_not_connected_to(
    place: Path, tmp_path: Path, kind: str
) -> None:
    planted = tmp_path / "planted"
    if kind == "link":
        planted.symlink_to(place)
    elif kind == "file":
        planted.write_text("x")
    elif kind == "folder":
        planted.mkdir()
    else:
        planted.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"no socket|symbolic|connect|levels"):
        connect(f"unix:{planted}")


def test_a_swap_between_a_look_and_the_connection_changes_nothing(
    place: Path, tmp_path: Path
) -> None:
    """An agent exchanges its own socket and a link to another one all the time."""
    with listen(f"unix:{tmp_path}/own.sock") as own:
        (tmp_path / "link.sock").symlink_to(place)
        stop = threading.Event()

        def swap() -> None:
            while not stop.is_set():
                for name in ("own.sock", "link.sock"):
                    (tmp_path / name).rename(tmp_path / "race.sock")
                    (tmp_path / "race.sock").rename(tmp_path / name)

        swapper = threading.Thread(target=swap)
        swapper.start()
        own.settimeout(5)
        reached = tries = 0
        end = time.monotonic() + SECONDS
        try:
            while (reached < 200 or tries < 2000) and time.monotonic() < end:
                tries += 1
                try:
                    client = connect(f"unix:{tmp_path}/race.sock")
                except OSError:
                    continue
                reached += 1
                with client:
                    # Whoever was reached is the agent's own, which has it in its queue.
                    accepted, _ = own.accept()
                    accepted.close()
        finally:
            stop.set()
            swapper.join()
        assert reached


def test_as_a_script_it_becomes_the_program_and_leaves_it_no_child(tmp_path: Path) -> None:
    with listen(f"unix:{tmp_path}/echo.sock") as server:
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        program = (
            "import os, socket, sys\n"
            "client = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 20)\n"
            "client.sendall(b'through'); client.shutdown(socket.SHUT_WR)\n"
            "print(os.getpid(), client.recv(100).decode(), sys.stdin.read())\n"
            "children = open(f'/proc/self/task/{os.getpid()}/children').read()\n"
            "print('children:', children)"
        )
        pair = f"tcp:{port}=unix:{tmp_path}/echo.sock"
        process = subprocess.Popen(
            [*(sys.executable, "-IS", pump.__file__, pair, "--"),
             *(sys.executable, "-c", program, str(port))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            # Reading to the end shows that the pump does not hold the program's streams open.
            out, _ = process.communicate("asked", timeout=SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert out == f"{process.pid} through asked\nchildren: \n"
