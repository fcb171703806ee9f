"""``airflow agents doctor``: what this machine has of all that agents need, and what mends it."""

from __future__ import annotations

import os
import shutil
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from airflow_agent_provider.agents.contract import Sandbox
from airflow_agent_provider.agents.failures import AgentFailure, AuthenticationFailed
from airflow_agent_provider.agents.prices import load_prices
from airflow_agent_provider.agents.registry import AGENTS, AgentSpec
from airflow_agent_provider.hooks.agent import LocalAgentHook, get_agent_hook
from airflow_agent_provider.settings import Settings, load_settings

#: Bytes of free disk below which the doctor warns.
_FREE_DISK = 5 * 1024**3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    :param what: what it is.
    :param state: ``ok``, ``warn`` or ``FAIL``; ``-`` for what is not set up.
    :param words: what was found, and what mends it.
    """

    what: str
    state: str
    words: str

    def __str__(self) -> str:
        return f"{self.state:<5} {self.what:<20} {self.words}"


@providers_configuration_loaded
def doctor(args: Namespace) -> None:
    """Look at everything, print a line each, and exit with 1 if anything fails.

    :param args: ``agent`` (names; all where empty) and ``online`` (whether vendors are asked).
    :raises SystemExit: 1 if something fails.
    """
    # As Airflow's own commands do: connections may be in its database.
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    failed = False
    for finding in examine(args.agent or list(AGENTS), online=args.online):
        failed = failed or finding.state == "FAIL"
        print(finding, flush=True)  # noqa: T201
    if failed:
        raise SystemExit(1)


def examine(agents: list[str], *, online: bool = False) -> Iterator[Finding]:
    """Yield a finding for each thing that agents need.

    :param agents: names in the registry; an unknown one is a failure.
    :param online: whether the vendors are asked about the keys.
    """
    try:
        settings = load_settings()
    except AgentFailure as failure:
        yield Finding("settings", "FAIL", failure.reason)
        return
    yield from _git()
    yield from _sandbox(settings)
    for name in agents:
        if name in AGENTS:
            yield from _agent(AGENTS[name], online)
        else:
            known = ", ".join(sorted(AGENTS))
            yield Finding(name, "FAIL", f"no agent is called so; there are: {known}")
    yield from _stores(settings)


def _git() -> Iterator[Finding]:
    from airflow_agent_provider.workspace.git import run_git
    from airflow_agent_provider.workspace.lfs import check_lfs
    from airflow_agent_provider.workspace.repository import check_git

    def version() -> str:
        check_git()
        return run_git(["version"], cwd=Path("/")).stdout.decode().strip()

    yield _try("git", version)
    lfs = _try("git-lfs", check_lfs)
    # Only workflows with 'lfs: true' need it.
    yield Finding(lfs.what, "-", lfs.words) if lfs.state == "FAIL" else lfs


def _sandbox(settings: Settings) -> Iterator[Finding]:
    from airflow_agent_provider.sandbox.box import try_box
    from airflow_agent_provider.sandbox.weaknesses import weaknesses

    wanted = settings.confinement.sandbox
    if wanted is Sandbox.OFF:
        yield Finding("sandbox", "warn", "[agents] sandbox = off: agents run as the worker's user")
        return
    finding = _try("sandbox", lambda: f"[agents] sandbox = {wanted.value}; {try_box()}")
    if finding.state == "FAIL" and wanted is Sandbox.AUTO:
        finding = Finding("sandbox", "warn", f"agents run unboxed: {finding.words}")
    yield finding
    for weakness in weaknesses():
        yield Finding("sandbox", "warn", weakness)


def _agent(spec: AgentSpec, online: bool) -> Iterator[Finding]:
    installed = _installed(spec)
    key = _key(spec)
    yield Finding(spec.name, "ok" if installed else "-", installed or _install(spec))
    hook = get_agent_hook(spec.name)
    if installed and isinstance(hook, LocalAgentHook):
        program = _try(f"{spec.name} program", hook.program_version)
        # Of an agent that nobody has set up, nothing is missing.
        missing = program.state == "FAIL" and key.state == "-"
        yield Finding(program.what, "-", program.words) if missing else program
    yield key
    if online and key.state == "ok":
        works, words = hook.test_connection()
        yield Finding(f"{spec.name} vendor", "ok" if works else "FAIL", words)


def _installed(spec: AgentSpec) -> str:
    try:
        return f"{spec.package} {metadata.version(spec.package)}"
    except metadata.PackageNotFoundError:
        return ""


def _install(spec: AgentSpec) -> str:
    return (
        f"{spec.package} is not installed; run: pip install 'airflow-agent-provider[{spec.name}]'"
    )


def _key(spec: AgentSpec) -> Finding:
    what = f"{spec.name} key"
    try:
        connection = get_agent_hook(spec.name).connection()
    except AuthenticationFailed as failure:
        return Finding(what, "-", failure.reason)
    if connection.password:
        return Finding(what, "ok", f"the connection {spec.connection!r} has one")
    return Finding(
        what,
        "FAIL",
        f"the connection {spec.connection!r} has no password; set it in Airflow under "
        "Admin > Connections",
    )


def _stores(settings: Settings) -> Iterator[Finding]:
    from airflow_agent_provider.hooks.artifacts import open_store

    def artifacts() -> str:
        store = open_store(settings.artifacts, settings.aws_conn_id)
        found = store.read("doctor.json")
        store.swap("doctor.json", uuid.uuid4().hex.encode(), found and found[1])
        return f"{settings.artifacts} can be written"

    yield _try("artifacts", artifacts)
    yield _try("workspaces", lambda: _writable(settings.workspaces))
    yield _space(settings.workspaces)
    yield _try("prices", lambda: f"of {load_prices(settings.prices).date}")
    if settings.mirror_table:
        yield _try("mirror", lambda: _mirror(settings))
        yield _api(settings)
    else:
        yield Finding("mirror", "-", "no [agents] mirror_table is set, so there is none")


def _writable(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".doctor-{uuid.uuid4().hex}"
    probe.touch()
    probe.unlink()
    return f"{folder} can be written"


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder if folder.exists() else folder.anchor).free
    words = f"{free // 1024**3:,} GiB are free for workspaces"
    if free < _FREE_DISK:
        return Finding("disk", "warn", f"{words}; remove what old runs have left")
    return Finding("disk", "ok", words)


def _mirror(settings: Settings) -> str:
    from airflow_agent_provider.hooks.mirror_table import MirrorTable

    table = MirrorTable(settings.mirror_table, settings.aws_conn_id)
    table.ensure_table()
    return f"table {settings.mirror_table} answers"


def _api(settings: Settings) -> Finding:
    from airflow_agent_provider.hooks.airflow_api import AirflowApiHook

    works, words = AirflowApiHook(settings.airflow_api_conn_id).test_connection()
    return Finding("airflow_api", "ok" if works else "FAIL", words)


def _try(what: str, look: Callable[[], str]) -> Finding:
    """Return what ``look`` finds; whatever it raises is what is wrong."""
    try:
        return Finding(what, "ok", look())
    except AgentFailure as failure:
        words = f" ({failure.raw})" if failure.raw else ""
        return Finding(what, "FAIL", f"{failure.reason}{words}")
    except Exception as error:
        return Finding(what, "FAIL", f"{type(error).__name__}: {error}")
