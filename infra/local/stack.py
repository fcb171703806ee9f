"""Airflow with its stand-ins, as processes of one machine.

Everything listens on the loopback interface, except Airflow's log servers, which have no setting
for it and ask for a signed token.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from infra.local.agents import rehearsal_connections
from infra.local.api import AirflowApi
from infra.local.aws import ROOT, Aws, free_ports, port_answers, start_ministack
from infra.local.processes import Child, Processes

BUCKET = "airflow-agents"
TABLE = "airflow-agents"
USER = "admin"
#: How the variables begin that say how to reach what is not of this machine.
FOREIGN = (
    "AIRFLOW_", "AWS_", "OPENAI_", "CODEX_", "CURSOR_", "ANTHROPIC_", "CLAUDE_", "COPILOT_", "GH_",
    "GITHUB_TOKEN",
)  # fmt: skip


class Stack:
    """A whole Airflow: a context manager that starts it and ends all of it.

    :param folder: what it writes: Airflow's home, workspaces, logs. One stack at a time.
    :param dags: Airflow's DAG folder.
    :param script: rehearsal script; None starts no scripted model and no vendor's stand-in.
    :param aws: the account that holds artifacts and mirror; None starts a stand-in of its own.
    :param stores: False keeps the artifacts in local files, and has neither AWS nor a mirror.
    :param settings: more of Airflow's settings, as ``{"section.option": "value"}``.
    :param port: Airflow's port, if it is free; any free one otherwise.
    :param parallelism: how many tasks run at once.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dags: Path = ROOT / "dags",
        script: Path | None = None,
        aws: Aws | None = None,
        stores: bool = True,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        parallelism: int = 4,
    ) -> None:
        self.folder = folder.absolute()
        self.dags = dags.absolute()
        self.script = script
        self.stores = stores
        self.processes = Processes(self.folder)
        self.password = secrets.token_urlsafe(12)
        self.airflow_process: Child | None = None
        self._aws = aws
        self._settings = dict(settings or {})
        self._parallelism = parallelism
        self._connections: dict[str, str] = {}
        self._undo = ExitStack()
        self._port = port
        self._ports: list[int] = []

    def __enter__(self) -> Self:
        """Start everything, and wait until Airflow is healthy.

        :raises ProcessFailed: if a part does not start; the text has the end of its log.
        :raises FolderInUse: if another stack has the folder.
        """
        with ExitStack() as undo:
            undo.enter_context(self.processes)
            self._ports = free_ports(5)
            if self._port is not None and not port_answers(self._port):
                self._ports[0] = self._port
            self._start_stores()
            self._start_rehearsal()
            self._start_airflow()
            undo.callback(self.api.close)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo.close()

    @property
    def url(self) -> str:
        """Where Airflow's UI is."""
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def aws(self) -> Aws:
        """The account with artifacts and mirror.

        :raises LookupError: if the stack has none.
        """
        if self._aws is None:
            raise LookupError("this stack was started without AWS")
        return self._aws

    @property
    def artifacts(self) -> str:
        """URL of the artifact store."""
        if self.stores:
            return f"s3://{BUCKET}/artifacts"
        return (self.folder / "artifacts").as_uri()

    @property
    def workspaces(self) -> Path:
        """The worker's folder of workspaces."""
        return self.folder / "workspaces"

    @property
    def env(self) -> dict[str, str]:
        """The environment of Airflow's processes and of its command line."""
        # Airflow starts its own command by name.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**_own_env(), "PATH": path, **self._airflow_env}

    def airflow(self, *arguments: str, within: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run Airflow's command line on this Airflow; the exit code is for the caller to judge.

        :param within: seconds.
        :raises subprocess.TimeoutExpired: if it takes longer.
        """
        return subprocess.run(
            [_airflow_program(), *arguments],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )

    def _start_stores(self) -> None:
        if not self.stores:
            return
        if self._aws is None:
            self._aws = start_ministack(self.processes)
        self._aws.create_bucket(BUCKET)
        self._connections["aws_default"] = self._aws.connection()

    def _start_rehearsal(self) -> None:
        if self.script is None:
            return
        model, cursor = self._ports[3:]
        port_file = self.folder / "rehearsal.json"
        port_file.unlink(missing_ok=True)
        command: list[str | Path] = [
            *(sys.executable, "-m", "airflow_agent_provider.rehearsal"),
            *("--script", self.script.absolute()),
            *("--model-port", str(model), "--cursor-port", str(cursor)),
            *("--port-file", port_file),
        ]
        self.processes.start(
            "rehearsal", command, env=_own_env(), cwd=self.folder, ready=port_file.exists
        )
        self._connections.update(
            rehearsal_connections(f"http://127.0.0.1:{model}", f"http://127.0.0.1:{cursor}")
        )

    def _start_airflow(self) -> None:
        passwords = self.folder / "passwords.json"
        _write_secret(passwords, json.dumps({USER: self.password}))
        self._connections["airflow_api"] = json.dumps(
            {
                "conn_type": "airflow_api",
                "host": self.url,
                "login": USER,
                "password": self.password,
            }
        )
        self._airflow_env = self._make_env(passwords)
        _write_secret(self.folder / "env", _shell(self._airflow_env))
        self.api = AirflowApi(self.url, USER, self.password)
        self.airflow_process = self.processes.start(
            "airflow",
            [_airflow_program(), "standalone"],
            env=self.env,
            cwd=self.folder,
            ready=self.api.healthy,
            within=240.0,
        )

    def _make_env(self, passwords: Path) -> dict[str, str]:
        api_port, log_port, trigger_port = map(str, self._ports[:3])
        settings = {
            "core.dags_folder": str(self.dags),
            "core.load_examples": "False",
            "core.dags_are_paused_at_creation": "False",
            "core.executor": "LocalExecutor",
            "core.parallelism": str(self._parallelism),
            "core.test_connection": "Enabled",
            "core.hostname_callable": "socket.gethostname",
            # Ends of tasks are noticed soon, and a busy machine is no reason to give a task up.
            "workers.min_heartbeat_interval": "1",
            "workers.execution_api_timeout": "60",
            "core.fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "core.execution_api_server_url": f"{self.url}/execution/",
            "core.simple_auth_manager_passwords_file": str(passwords),
            "api.host": "127.0.0.1",
            "api.port": api_port,
            "api.base_url": self.url,
            "api.secret_key": secrets.token_urlsafe(32),
            "api_auth.jwt_secret": secrets.token_urlsafe(64),
            "logging.worker_log_server_port": log_port,
            "logging.trigger_log_server_port": trigger_port,
            "usage_data_collection.enabled": "False",
            "agents.artifacts": self.artifacts,
            "agents.workspaces": str(self.workspaces),
            "agents.programs": str(ROOT / ".programs"),
            "agents.mirror_table": TABLE if self.stores else "",
            "agents.push": "always",
            # The demo triggers its workflow with a clone on this disk.
            "agents.repositories": "https://* /*",
            **self._settings,
        }
        return {
            "AIRFLOW_HOME": str(self.folder / "airflow"),
            "PYTHONUNBUFFERED": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            **{_variable(name): value for name, value in settings.items()},
            **{f"AIRFLOW_CONN_{name.upper()}": text for name, text in self._connections.items()},
        }


def _own_env() -> dict[str, str]:
    # Settings and keys of the user's own Airflow, AWS and vendors must not get in.
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    # A proxy, where there is one, does not lead to this machine's own servers.
    for name in ("no_proxy", "NO_PROXY"):
        own[name] = ",".join(filter(None, (own.get(name), "127.0.0.1", "localhost")))
    return own


def _variable(setting: str) -> str:
    section, _, option = setting.partition(".")
    return f"AIRFLOW__{section.upper()}__{option.upper()}"


def _shell(env: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())


def _airflow_program() -> str:
    beside = Path(sys.executable).parent / "airflow"
    return str(beside) if beside.exists() else shutil.which("airflow") or "airflow"


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)
