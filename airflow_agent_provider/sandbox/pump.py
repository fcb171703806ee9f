"""Joins sockets: what comes to one address is pumped to another.

Also a script, which runs inside the box, where there is no network: it listens where the agent
expects its model, hands what comes to the sockets that lead outside, and becomes the agent's
program. Started by path as ``python -IS pump.py LISTEN=CONNECT… -- PROGRAM ARGUMENT…``, it must
import nothing of ours. An address is ``tcp:PORT``, on the loopback interface, ``unix:PATH``, or,
to listen, ``fd:NUMBER`` for a socket that listens already.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import threading

_CHUNK = 65536
_BACKLOG = 64
#: Connections at a time; more wait to be accepted.
_MOST = 128
_CONNECT_SECONDS = 10.0


def listen(address: str) -> socket.socket:
    """Return a socket that listens at ``address``; OSError where it is taken."""
    kind, _, place = address.partition(":")
    if kind == "tcp":
        return socket.create_server(("127.0.0.1", int(place)), backlog=_BACKLOG)
    if kind == "fd":
        return socket.socket(fileno=int(place))
    server = socket.socket(socket.AF_UNIX)
    try:
        server.bind(place)
        server.listen(_BACKLOG)
    except OSError:
        server.close()
        raise
    return server


def connect(address: str) -> socket.socket:
    """Return a socket connected to ``address``; OSError where nobody listens."""
    kind, _, place = address.partition(":")
    if kind == "tcp":
        return socket.create_connection(("127.0.0.1", int(place)), timeout=_CONNECT_SECONDS)
    # An agent may put a link where the socket should be, at any moment: what was looked at is what
    # is connected to.
    found = os.open(place, os.O_PATH | os.O_NOFOLLOW)
    client = socket.socket(socket.AF_UNIX)
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise ConnectionRefusedError(f"{place} is no socket")
        client.settimeout(_CONNECT_SECONDS)
        client.connect(f"/proc/self/fd/{found}")
    except OSError:
        client.close()
        raise
    finally:
        os.close(found)
    return client


def serve(server: socket.socket, target: str) -> None:
    """Pump each connection of ``server`` to ``target``, until the socket is closed."""
    free = threading.BoundedSemaphore(_MOST)
    while True:
        free.acquire()
        try:
            client, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_join, args=(client, target, free), daemon=True).start()


def _join(client: socket.socket, target: str, free: threading.BoundedSemaphore) -> None:
    try:
        with client, connect(target) as other:
            client.settimeout(None)
            other.settimeout(None)
            back = threading.Thread(target=_copy, args=(other, client), daemon=True)
            back.start()
            _copy(client, other)
            back.join()
    except OSError:
        pass  # Nobody there: the closed connection tells the client.
    finally:
        free.release()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    # The other half may go on: only this direction has ended.
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def main(arguments: list[str]) -> None:
    """Pump in a process of its own, and run the command in this one."""
    end = arguments.index("--")
    pairs = [pair.split("=", 1) for pair in arguments[:end]]
    servers = [(listen(here), there) for here, there in pairs]
    # Twice, so that the agent's program, which this process becomes, has no child it knows not of.
    if os.fork() == 0:
        if os.fork() == 0:
            _pump(servers)
        os._exit(0)
    os.wait()
    for server, _ in servers:
        server.close()
    command = arguments[end + 1 :]
    os.execvp(command[0], command)


def _pump(servers: list[tuple[socket.socket, str]]) -> None:
    # The agent's streams end when the agent does, not when the pump does.
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    threads = [threading.Thread(target=serve, args=pair) for pair in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
