"""A broken definition in Airflow's own list of import errors, at the cost of no other workflow.

Airflow files an import error under a Python file, and an error under the loader's name would mark
all of its DAGs as stale. So a broken definition gets a placeholder DAG, which fails when the DAG
processor serializes it: that error Airflow files under the DAG's ``relative_fileloc``, which here
is the definition's path, and it keeps all other DAGs of the loader.

This rests on internals of Airflow 3.3, each held by a test in
``tests/dag_factory/test_import_errors.py``:

- ``airflow.dag_processing.processor._parse_file_entrypoint`` sets ``_AIRFLOW_PROCESS_CONTEXT`` to
  ``client`` in the process that parses. Elsewhere, as in ``airflow dags reserialize``, a DAG that
  does not serialize ends the command, and the siblings stay unserialized. So elsewhere there is no
  placeholder.
- Its ``_serialize_dags`` catches what serialization raises, for each DAG, and files it under
  ``relative_fileloc``.
- The importer assigns ``relative_fileloc`` from the loader's path, after the DAG is made.
- Serialization reads ``doc_md``, and lets a ``SerializationError`` pass unchanged.

At each scan for new files (``refresh_interval``) the DAG processor drops errors whose file is no
Python file, and the next parse of the loader brings them back.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePath
from typing import Any

from airflow.exceptions import SerializationError
from airflow.sdk import DAG, get_parsing_context

from dag_factory.errors import InvalidWorkflow


def in_dag_processor() -> bool:
    """Return whether this is the DAG processor's parser, where placeholders do no harm."""
    client = os.environ.get("_AIRFLOW_PROCESS_CONTEXT") == "client"
    return client and get_parsing_context().dag_id is None


class WorkflowError(SerializationError):
    """What Airflow shows for a broken definition: its located errors."""


def placeholder(file_name: str, error: InvalidWorkflow) -> DAG:
    """Return a DAG whose serialization raises ``error``, filed under the definition's path.

    :param file_name: name of the definition's file, which is beside the loader.
    :param error: what is wrong with it.
    """
    # The id must clash with no other DAG of the folder, valid or not; file names are unique there,
    # and no workflow's name starts with an underscore.
    dag_id = "_invalid." + re.sub(
        "[^A-Za-z0-9.-]", lambda found: f"_{ord(found.group()):x}", file_name
    )
    dag = _Placeholder(dag_id[:250], schedule=None, catchup=False, tags=["agents"])
    dag.explain(file_name, error)
    return dag


class _Placeholder(DAG):
    _file_name = ""
    _error: InvalidWorkflow | None = None
    _relative_fileloc: str | None = None

    def explain(self, file_name: str, error: InvalidWorkflow) -> None:
        self._file_name = file_name
        self._error = error

    @property
    def relative_fileloc(self) -> str | None:
        return self._relative_fileloc

    @relative_fileloc.setter
    def relative_fileloc(self, loader: str | None) -> None:
        # The importer says where the loader is within its bundle; the definition is beside it.
        self._relative_fileloc = loader and str(PurePath(loader).with_name(self._file_name))

    @property
    def doc_md(self) -> str | None:
        if self._error is None:
            return None
        raise WorkflowError(f"the workflow is not valid\n{self._error}")

    @doc_md.setter
    def doc_md(self, value: Any) -> None:
        pass
