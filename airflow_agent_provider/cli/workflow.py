"""The workflow that a command names: a file, or the name of one in the DAGs folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from airflow.configuration import conf

from dag_factory.errors import InvalidWorkflow, Problem, nearest, printable, show
from dag_factory.reader import SUFFIXES, Definition, read_definition

if TYPE_CHECKING:
    from airflow.sdk import DAG


def read_workflow(name: str) -> tuple[Path, Definition]:
    """Return the file and the definition of the workflow that a user names.

    :param name: a path, or the name of a workflow below the DAGs folder.
    :raises SystemExit: 1, after a line on stderr for each thing that is wrong.
    """
    try:
        path = _find(name)
        return path, read_definition(path)
    except InvalidWorkflow as error:
        fail(*map(str, error.problems))


def build_dag(path: Path, definition: Definition) -> DAG:
    """Return the DAG of a definition, as Airflow would load it.

    :raises SystemExit: 1, after a line on stderr, if Airflow refuses it.
    """
    from dag_factory.builder import build

    try:
        return build(definition, str(path.absolute()))
    except Exception as error:
        # The checks should leave nothing that Airflow objects to.
        fail(f"{printable(str(path))}:1:1: Airflow refuses the workflow: {error}")


def fail(*lines: str) -> NoReturn:
    """Print what is wrong on stderr, and end the command with status 1."""
    sys.stderr.writelines(f"{line}\n" for line in lines)
    raise SystemExit(1)


def _find(name: str) -> Path:
    path = Path(name)
    if path.suffix in SUFFIXES or "/" in name or path.exists():
        return path
    folder = Path(conf.get_mandatory_value("core", "dags_folder"))
    known = {path.stem: path for path in _definitions(folder)}
    if name not in known:
        text = f"no workflow {show(name)} below {folder}; {nearest(name, known)}"
        raise InvalidWorkflow([Problem(printable(name), 1, 1, text)])
    return known[name]


def _definitions(folder: Path) -> Iterator[Path]:
    for suffix in SUFFIXES:
        yield from sorted(folder.rglob(f"[!.]*{suffix}"))
