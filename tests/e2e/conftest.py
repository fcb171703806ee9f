"""The running Airflow that the end-to-end tests share."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_agent_provider.hooks.artifacts import open_store
from tests.e2e.bench import Bench
from tests.e2e.live import Live, start_live


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests with a running Airflow follow each other: two at once starve each other."""
    for item in items:
        if {"live", "live_airflow"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("live"))
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def live_airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Return a running Airflow with scripted agents, S3, DynamoDB and the mirror."""
    with start_live(tmp_path_factory.mktemp("live")) as live:
        yield live


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    url = (tmp_path / "artifacts").as_uri()
    monkeypatch.setenv("AIRFLOW__AGENTS__ARTIFACTS", url)
    monkeypatch.setenv("AIRFLOW__AGENTS__WORKSPACES", str(tmp_path / "workspaces"))
    monkeypatch.setenv("AIRFLOW__AGENTS__PUSH", "always")
    dags = Path(os.environ["AIRFLOW_HOME"]) / "dags"
    dags.mkdir(exist_ok=True)
    # A deferred step is resumed soon.
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "0")
    found = Bench(tmp_path, open_store(url), dags, monkeypatch)
    handler = signal.getsignal(signal.SIGTERM)
    yield found
    # A task that ran in this process has left its own.
    signal.signal(signal.SIGTERM, handler)
    shutil.rmtree(found.dags)
    if found.server is not None:
        found.server.stop()
