"""An Airflow home of the tests' own, where the whole suite has not set one already."""

from __future__ import annotations

import os
import sys
import tempfile

# Airflow reads its settings when it is first imported, which is when tests are collected.
if "airflow" not in sys.modules:
    os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
