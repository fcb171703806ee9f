"""Replace this process by a program in its box, with none of this process's environment.

A script, run by path as ``python -IS enter.py SPEC ARGUMENT…``; it must import nothing of ours.
``SPEC`` is a JSON file: ``environment`` (variables), ``inherited`` (names of variables that pass
through), ``limits`` (soft and hard limit by resource), ``cgroups`` (files to write 0 into),
``stdin`` (device and inode of the worker's own), ``bwrap`` (the program and its arguments, empty
where there is no box), ``filter`` (of system calls, hexadecimal), ``inlet`` (path of a socket to
listen at, if any) and ``command``, in which ``{inlet}`` stands for that socket's descriptor.

It execs, so that the program has the process id that its parent knows. The clean environment is
given to bubblewrap itself: it is the first process of the box, whose ``/proc`` entry would show the
worker's variables otherwise.
"""

from __future__ import annotations

import json
import os
import resource
import sys

#: Flags of unshare(2) and mount(2): bind and recursive, with private, and with remount read-only.
_NEW_MOUNTS = 0x00020000
_BIND, _PRIVATE, _READ_ONLY = 0x1000, 0x4000 | 0x40000, 0x1000 | 0x20 | 0x1 | 0x2


def main(arguments: list[str]) -> None:
    """Enter the box that the first argument describes; the others go to the program."""
    path, *rest = arguments
    with open(path) as file:  # noqa: PTH123 - pathlib takes longer to import than all of this
        spec = json.load(file)
    environment = {name: os.environ[name] for name in spec["inherited"] if name in os.environ}
    environment |= spec["environment"]
    _leave_descriptors(spec["stdin"])
    for entrance in spec["cgroups"]:
        with open(entrance, "w") as file:  # noqa: PTH123
            file.write("0")
    for name, value in spec["limits"].items():
        _limit(getattr(resource, name), value)
    os.umask(0o077)
    command = spec["command"]
    if spec["inlet"]:
        inlet = str(_inlet(spec["inlet"]))
        command = [word.replace("{inlet}", inlet) for word in command]
    command = [*command, *rest]
    if spec["bwrap"]:
        if os.geteuid() == 0:
            _guard_devices()
        program, *bounds = spec["bwrap"]
        bounds += ["--seccomp", str(_file(bytes.fromhex(spec["filter"])))]
        words = b"".join(os.fsencode(word) + b"\0" for word in bounds)
        # From a file: a command line would show them to everybody.
        command = [program, "--args", str(_file(words)), "--", *command]
    os.execvpe(command[0], command, environment)


def _leave_descriptors(stdin: list[int]) -> None:
    """Keep nothing open but the three streams, of which none is the worker's own line to Airflow.

    A vendor's SDK may let its child inherit what it has itself: files, sockets, and the stream by
    which a task asks its supervisor for connections and variables.
    """
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:
                continue  # That of the listing itself.
    for stream in range(3):
        try:
            status = os.fstat(stream)
        except OSError:
            status = None
        if status is None or [status.st_dev, status.st_ino] == stdin:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, stream)
            os.set_inheritable(stream, True)
            if null > 2:
                os.close(null)


def _guard_devices() -> None:
    """Make the worker's devices read-only for this process: root's agent owns them otherwise.

    Writing to a device goes on as before; what is held back is to change who may use it.
    """
    # Only root needs it, and it takes as long to import as the rest together.
    import ctypes

    libc = ctypes.CDLL(None)
    if libc.unshare(_NEW_MOUNTS) != 0:
        return  # In a container without CAP_SYS_ADMIN, whose devices are its own.
    libc.mount(None, b"/", None, _PRIVATE, None)
    for name in (b"null", b"zero", b"full", b"random", b"urandom", b"tty"):
        device = b"/dev/" + name
        libc.mount(device, device, None, _BIND, None)
        libc.mount(None, device, None, _READ_ONLY, None)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _inlet(path: str) -> int:
    """Return the descriptor of a socket that listens at ``path``.

    Made out here, where the program cannot put anything else in its place.
    """
    # Few programs need it, and it takes as long to import as the rest together.
    import socket

    if os.path.lexists(path):
        os.unlink(path)  # noqa: PTH108
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    server.set_inheritable(True)
    return server.detach()


def _file(content: bytes) -> int:
    descriptor = os.memfd_create("box", 0)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


if __name__ == "__main__":
    main(sys.argv[1:])
