"""An Airflow home of the tests' own, where the whole suite has not set one already."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

# Airflow reads its settings when it is first imported, which is when tests are collected.
if "airflow" not in sys.modules:
    os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder for definitions, with prompts and schemas beside it."""
    dags = tmp_path / "dags"
    (tmp_path / "prompts").mkdir()
    (tmp_path / "schemas").mkdir()
    dags.mkdir()
    (tmp_path / "prompts" / "plan.md").write_text("Plan {{ params.feature }}.\n")
    (tmp_path / "schemas" / "plan.json").write_text('{"type": "object"}\n')
    return dags
