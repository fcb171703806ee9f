"""Replace this process by a program in its box, with none of this process's environment.

A script, run by path as ``python -IS enter.py SPEC ARGUMENT…``; it must import nothing of ours.
``SPEC`` is a JSON file: ``environment`` (variables), ``inherited`` (names of variables that pass
through), ``limits`` (soft and hard limit by resource), ``bwrap`` (the program and its arguments,
empty where there is no box) and ``command``.

It execs, so that the program has the process id that its parent knows. The clean environment is
given to bubblewrap itself: it is the first process of the box, whose ``/proc`` entry would show the
worker's variables otherwise.
"""

from __future__ import annotations

import json
import os
import resource
import sys


def main(arguments: list[str]) -> None:
    """Enter the box that the first argument describes; the others go to the program."""
    path, *rest = arguments
    with open(path) as file:  # noqa: PTH123 - pathlib takes longer to import than all of this
        spec = json.load(file)
    environment = {name: os.environ[name] for name in spec["inherited"] if name in os.environ}
    environment |= spec["environment"]
    for name, value in spec["limits"].items():
        _limit(getattr(resource, name), value)
    os.umask(0o077)
    command = [*spec["command"], *rest]
    if spec["bwrap"]:
        program, *bounds = spec["bwrap"]
        command = [program, "--args", str(_file(bounds)), "--", *command]
    os.execvpe(command[0], command, environment)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _file(words: list[str]) -> int:
    """Return a descriptor that holds ``words``, each ended by NUL: a command line shows none."""
    descriptor = os.memfd_create("arguments", 0)
    os.write(descriptor, b"".join(os.fsencode(word) + b"\0" for word in words))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


if __name__ == "__main__":
    main(sys.argv[1:])
