"""A folder of definitions to DAGs: one that is broken costs no other."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from airflow.sdk import DAG, get_parsing_context

from dag_factory.builder import build
from dag_factory.errors import InvalidWorkflow, Problem, one_line, printable
from dag_factory.files import Files
from dag_factory.import_errors import in_dag_processor, placeholder
from dag_factory.reader import SUFFIXES, read_definition

log = logging.getLogger(__name__)


def load_workflows(loader_file: str) -> dict[str, DAG]:
    """Return the DAGs of all definitions beside a DAG file, by their ids.

    A DAG file of three lines, which Airflow's search for DAG files finds by its comment::

        from dag_factory import load_workflows  # each definition here becomes an Airflow DAG

        globals().update(load_workflows(__file__))

    Where Airflow asks for one DAG, as for a task, only that definition is read. A definition with
    errors becomes an import error under its own name where the DAG processor parses, and a line in
    the log elsewhere.

    :param loader_file: the DAG file, its ``__file__``.
    """
    folder = Path(os.path.abspath(loader_file)).parent  # noqa: PTH100 - keeps links of bundles
    asked = get_parsing_context().dag_id
    files = Files(folder)
    dags = {}
    for name in definition_names(folder) if asked is None else _names_of(folder, asked):
        try:
            # What a task's definition names, the DAG processor has checked before there was a task.
            dag = _load(folder / name, files, loader_file, references=asked is None)
        except InvalidWorkflow as error:
            log.error("Invalid workflow in %s:\n%s", folder, error)
            if not in_dag_processor():
                continue
            dag = placeholder(printable(name), error)
        dags[dag.dag_id] = dag
    return dags


def definition_names(folder: Path) -> list[str]:
    """Return the names of the definitions' files in a folder, sorted; hidden files are none.

    :raises OSError: if the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.name.endswith(SUFFIXES) and entry.name[0] != "." and entry.is_file()
        )


def _names_of(folder: Path, dag_id: str) -> list[str]:
    """Return the names of the definitions' files that may define ``dag_id``."""
    names = (f"{dag_id}{suffix}" for suffix in SUFFIXES)
    return [name for name in names if os.path.isfile(folder / name)]  # noqa: PTH113


def _load(path: Path, files: Files, loader_file: str, *, references: bool) -> DAG:
    definition = read_definition(path, path.name, files, references=references)
    try:
        return build(definition, loader_file)
    except Exception as error:
        # The checks should leave nothing that Airflow objects to; where they do, as after an
        # upgrade of Airflow, the siblings still load.
        text = f"Airflow refuses the workflow: {one_line(error)}; see the log"
        log.exception("Airflow refuses the workflow in %s", path)
        raise InvalidWorkflow([Problem(path.name, 1, 1, text)]) from error
