"""The running Airflow that the end-to-end tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
