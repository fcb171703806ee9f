"""Where agents' programs are found that no Python package brings, and what they need to run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from airflow_agent_provider.agents.failures import InvalidDefinition

#: The first line of a program for node, as npm's packages have it.
_NODE = b"node"
_FIRST_LINE = 200


def find_program(
    command: Sequence[str], programs: Path, install: str
) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """Return a command line that runs as it stands, and the files and folders that it needs.

    :param command: the program and its arguments. A name is looked up below ``programs``, as
        ``npm install --prefix`` puts it there; anything else must be an absolute path.
    :param programs: the npm prefix of the agents' programs (``[agents] programs``).
    :param install: what to do where the program is missing.
    :raises InvalidDefinition: if the program, or the node that it needs, is not there.
    """
    name, *arguments = command
    link = Path(name) if "/" in name else programs / "node_modules" / ".bin" / name
    if not link.is_absolute():
        raise InvalidDefinition(f"{name!r} is neither a program's name nor an absolute path")
    if not link.is_file() or not os.access(link, os.X_OK):
        raise InvalidDefinition(f"the program {link} is missing; {install}")
    program = link.resolve()
    if not _is_node_script(program):
        # By the path that it was named by: a virtual environment is found by it.
        return (str(link), *arguments), (link, _package(program))
    node = shutil.which("node")
    if node is None:
        raise InvalidDefinition(
            f"{program} needs node, which this worker does not have on its PATH; install it "
            "(Debian: apt-get install nodejs)"
        )
    folders = (_package(program), *_node_folders(Path(node).resolve()))
    return (str(Path(node).resolve()), str(program), *arguments), folders


def _is_node_script(program: Path) -> bool:
    with program.open("rb") as file:
        first = file.read(_FIRST_LINE).partition(b"\n")[0]
    return program.suffix in (".js", ".mjs", ".cjs") or (first.startswith(b"#!") and _NODE in first)


def _package(program: Path) -> Path:
    """Return the outermost ``node_modules`` around a program, else the program alone.

    What lies beside a program elsewhere may be anybody's.
    """
    outermost = [folder for folder in program.parents if folder.name == "node_modules"]
    return outermost[-1] if outermost else program


def _node_folders(node: Path) -> Iterable[Path]:
    # An installation of its own has its libraries beside ``bin``; the system's is there anyway.
    return () if node.is_relative_to("/usr") else (node.parent.parent,)
