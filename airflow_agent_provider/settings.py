"""The ``[agents]`` section of Airflow's configuration, as values.

Every setting is described in :mod:`airflow_agent_provider.provider_info`, which declares the
section to Airflow with its defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from airflow.configuration import AIRFLOW_HOME
from airflow.sdk.configuration import conf

SECTION = "agents"


@dataclass(frozen=True)
class Settings:
    """What the provider reads from Airflow's configuration.

    :param artifacts: URL below which artifacts are stored, ``file://…`` or ``s3://bucket/prefix``.
    :param workspaces: folder of the worker for workspaces and repository mirrors.
    :param programs: folder of the worker, an npm prefix, for the agents' programs that come from
        npm.
    :param aws_conn_id: connection for S3 and DynamoDB.
    :param airflow_api_conn_id: connection to Airflow's public API, for the reconcile.
    :param mirror_table: DynamoDB table of the mirror; empty where there is no mirror.
    :param push: when the run's branch is pushed to the repository: ``hosted`` or ``always``.
    :param lease_ttl: seconds after which an attempt that renews no more has lost its step.
    """

    artifacts: str
    workspaces: Path
    programs: Path
    aws_conn_id: str
    airflow_api_conn_id: str
    mirror_table: str
    push: str
    lease_ttl: float


def load_settings() -> Settings:
    """Return the settings in force; reads Airflow's configuration anew at each call."""
    home = Path(AIRFLOW_HOME).absolute() / "agents"
    return Settings(
        artifacts=_text("artifacts") or (home / "artifacts").as_uri(),
        workspaces=Path(_text("workspaces") or home / "workspaces"),
        programs=Path(_text("programs") or home / "programs"),
        aws_conn_id=_text("aws_conn_id") or "aws_default",
        airflow_api_conn_id=_text("airflow_api_conn_id") or "airflow_api",
        mirror_table=_text("mirror_table"),
        push=_text("push") or "hosted",
        lease_ttl=conf.getfloat(SECTION, "lease_ttl", fallback=60.0),
    )


def _text(option: str) -> str:
    return str(conf.get(SECTION, option, fallback="") or "").strip()
