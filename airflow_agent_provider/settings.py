"""The ``[agents]`` section of Airflow's configuration, as values.

Every setting is described in :mod:`airflow_agent_provider.provider_info`, which declares the
section to Airflow with its defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from airflow.configuration import AIRFLOW_HOME
from airflow.sdk.configuration import conf

from airflow_agent_provider.agents.contract import Confinement, Sandbox
from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.workspace.allowed import AllowList

SECTION = "agents"
#: The repositories that a run may name where nobody says otherwise.
REPOSITORIES = "https://*"
_MIB = 1024**2


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
    :param confinement: the bounds of local agents' programs, but for their network.
    :param repositories: the repositories that a run may name beside its workflow's own.
    :param prices: path of a JSON file with prices of models; empty for the provider's own alone.
    """

    artifacts: str
    workspaces: Path
    programs: Path
    aws_conn_id: str
    airflow_api_conn_id: str
    mirror_table: str
    push: str
    lease_ttl: float
    confinement: Confinement
    repositories: AllowList
    prices: str


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
        confinement=_confinement(),
        repositories=_repositories(),
        prices=_text("prices"),
    )


def _confinement() -> Confinement:
    name = _text("sandbox") or Sandbox.REQUIRED.value
    if name not in set(Sandbox):
        known = ", ".join(Sandbox)
        raise InvalidDefinition(f"[agents] sandbox is {name!r}; it is one of: {known}")
    paths = [Path(path) for path in _text("sandbox_read_only_paths").split(":") if path]
    for path in paths:
        if not path.is_absolute():
            raise InvalidDefinition(
                f"[agents] sandbox_read_only_paths has {str(path)!r}, which is no absolute path"
            )
    default = Confinement()
    return Confinement(
        sandbox=Sandbox(name),
        read_only_paths=tuple(paths),
        memory=_mebibytes("sandbox_memory", default.memory),
        processes=conf.getint(SECTION, "sandbox_processes", fallback=default.processes),
        file_size=_mebibytes("sandbox_file_size", default.file_size),
        disk=_mebibytes("sandbox_disk", default.disk),
    )


def _repositories() -> AllowList:
    # Set to nothing, it allows nothing; only where it is not set at all does the default count.
    patterns = str(conf.get(SECTION, "repositories", fallback=REPOSITORIES) or "")
    try:
        return AllowList(patterns.replace(",", " ").split())
    except ValueError as error:
        raise InvalidDefinition(f"[agents] repositories: {error}") from error


def _mebibytes(option: str, default: int) -> int:
    return int(conf.getint(SECTION, option, fallback=default // _MIB)) * _MIB


def _text(option: str) -> str:
    return str(conf.get(SECTION, option, fallback="") or "").strip()
