"""Replace this process by a program that inherits only the named environment variables.

A script, run by path as ``python -IS launcher.py NAME,NAME… PROGRAM ARGUMENT…``: it must import
nothing of ours, and it execs, so that the program has the process id that its parent knows and
the parent's variables are not even in its ``/proc`` entry.
"""

from __future__ import annotations

import os
import sys


def main(arguments: list[str]) -> None:
    """Run ``arguments``: the names, comma-separated, then the command."""
    names, *command = arguments
    environment = {name: os.environ[name] for name in names.split(",") if name in os.environ}
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main(sys.argv[1:])
