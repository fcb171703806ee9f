"""Every failure class in a running Airflow: the state, the delay, and why in one line."""

from __future__ import annotations

from tests.e2e.failure_classes import faults, provoke, shown
from tests.e2e.live import Live


def test_every_failure_class_is_told_in_airflow(live_airflow: Live) -> None:
    rows = provoke(live_airflow)
    assert not faults(rows), f"{faults(rows)}\n{shown(rows)}"
