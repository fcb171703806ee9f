"""The provider's Airflow plugin. Task processes load it, so it imports nothing of the web.

Airflow ignores ``plugins`` in a provider's description, hence the ``airflow.plugins`` entry point.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_agent_provider.settings import load_settings


def _listeners() -> list[Any]:
    # Any registered listener makes Airflow reject DAGs that use end_from_trigger, so those who have
    # no mirror get none.
    if not load_settings().mirror_table:
        return []
    import airflow_agent_provider.mirror.listener as listener

    return [listener]


class AgentsPlugin(AirflowPlugin):
    """Registers the mirror's listeners."""

    name = "agents"
    listeners = _listeners()
