"""What an agent's step costs beyond the bare turn of its SDK, and the memory that the agent takes.

``python benchmarks/step_overhead.py [AGENT …]`` plays one script with each local agent, in fresh
processes, in three ways:

- bare: the vendor's SDK alone, in a working tree that is there already (:mod:`.bare_turns`);
- local: a task of a DAG, its agent in the box, with artifacts in local files and no mirror;
- stores: the same, with artifacts in S3 and the mirror in DynamoDB (ministack).

A step's overhead is its task's time, less that of a task that does nothing, less the bare turn's.
Airflow has run tasks in the process before, so that nothing of its own is cold, and what it holds
is frozen for the garbage collector, as in the workers of Airflow's LocalExecutor: else a collection
of it all, a third of a second, falls into one figure or another. The first step of a process pays
for imports and clients, as every task of a real worker does; the later ones show what is left
without them. Each figure is the least of several, which other load disturbs least. Memory is that
of the agent's program and all that it started, in one more turn, so that to watch it costs no time.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from airflow_agent_provider.agents.registry import AGENTS  # noqa: E402
from benchmarks.bare_turns import CURSOR_MODEL, KEY, TURNS, seconds_of  # noqa: E402
from benchmarks.peak_memory import PeakMemory  # noqa: E402
from infra.local.agents import MODEL, rehearsal_connections  # noqa: E402
from infra.local.aws import Aws, start_ministack  # noqa: E402
from infra.local.processes import Processes  # noqa: E402
from infra.local.stack import BUCKET, FOREIGN, TABLE  # noqa: E402

#: Fresh processes of each agent and way.
PROCESSES = 2
#: Later turns of a process, at most; none begins after so many seconds of them.
LATER = 4
LATER_SECONDS = 8.0
TARGETS = {"local": 0.15, "stores": 0.3}
KINDS = ("bare", *TARGETS)
SCRIPT = """\
steps:
  work:
    - write: {path: docs/notes.md, content: "# Notes"}
    - run: cat docs/notes.md
    - say: Written.
"""
IDLE = """\
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG

with DAG("bench_idle", schedule=None) as dag:
    PythonOperator(task_id="work", python_callable=lambda: None)
"""
STEP = """\
import os

from airflow.sdk import DAG

from airflow_agent_provider.operators.agent import AgentOperator

with DAG("{dag_id}", schedule=None) as dag:
    AgentOperator(
        task_id="work",
        agent={agent!r},
        agent_conn_id={connection!r},
        model={model!r},
        options={options!r},
        prompt="Write notes.",
        repository=os.environ["BENCH_REPOSITORY"],
    )
"""


@dataclass(frozen=True)
class Candidate:
    """A local agent of the bench.

    :param agent: its name in the registry.
    :param connection: id of its connection.
    :param model: the step's; None takes the connection's.
    :param options: the step's, for this agent.
    """

    agent: str
    connection: str
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


CANDIDATES = {
    "acp-qwen": Candidate("acp", "acp_default"),
    "acp-scripted": Candidate("acp", "acp_scripted"),
    "claude": Candidate("claude", "claude_default"),
    "codex": Candidate("codex", "codex_default"),
    "copilot": Candidate("copilot", "copilot_default"),
    "cursor": Candidate("cursor", "cursor_default", CURSOR_MODEL, {"hosted": False}),
}

Timed = Callable[[], float]


@dataclass(frozen=True)
class Figures:
    """What one process measured.

    :param idle: seconds of a task that does nothing; the least of several.
    :param first: seconds of the first turn in the process.
    :param later: seconds of the later ones, the least of them.
    :param memory: bytes of the agent's program and all that it started, at most.
    """

    idle: float
    first: float
    later: float
    memory: int


def least(figures: Sequence[Figures]) -> Figures:
    """Return the least of each figure."""
    return Figures(
        min(each.idle for each in figures),
        min(each.first for each in figures),
        min(each.later for each in figures),
        min(each.memory for each in figures),
    )


def dag_run(name: str) -> Timed:
    """Return what runs a DAG of the DAG folder in this process and tells the seconds."""
    sys.path.insert(0, os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    dag = import_module(name).dag

    def run() -> float:
        started = time.perf_counter()
        state = dag.test().state
        if state != "success":
            raise SystemExit(f"the DAG run has ended as {state}")
        return time.perf_counter() - started

    return run


def measure(kind: str, name: str, url: str) -> Figures:
    """Return what turns of an agent take in this process.

    :param kind: one of :data:`KINDS`.
    :param name: one of :data:`CANDIDATES`.
    :param url: the scripted models; for Cursor, its stand-in.
    """
    idle = dag_run("bench_idle")
    idles = [idle() for _ in range(4)]
    gc.collect()
    gc.freeze()
    work = partial(seconds_of, TURNS[name], url) if kind == "bare" else dag_run("bench_step")
    first = work()
    later: list[float] = []
    while not later or (len(later) < LATER and sum(later) < LATER_SECONDS):
        later.append(work())
    with PeakMemory() as peak:
        work()
    return Figures(min(idles), first, min(later), peak.bytes)


def main() -> int:
    """Measure one way in this process, or all of them in fresh ones."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "agents", nargs="*", metavar="AGENT", help=f"of {', '.join(CANDIDATES)}; default: all"
    )
    parser.add_argument("--processes", type=int, default=PROCESSES, help="of each agent and way")
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.agents) - set(CANDIDATES):
        parser.error(f"no agent is called {', '.join(sorted(unknown))}")
    names = options.agents or list(CANDIDATES)
    if options.measure:
        kind, url = options.measure
        print(json.dumps(vars(measure(kind, names[0], url))))
        return 0
    _refuse_gaps()
    # Not in /tmp, as no worker has its workspaces there; see also benchmarks/bare_turns.py.
    place = ROOT / ".demo"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="step-overhead-", dir=place) as folder:
        reached = _report(_measure_all(Path(folder), names, options.processes))
    print("targets reached" if reached else "TARGETS MISSED")
    return 0 if reached else 1


def _refuse_gaps() -> None:
    local = {name for name, spec in AGENTS.items() if spec.capabilities.local}
    missing = local - {candidate.agent for candidate in CANDIDATES.values()}
    if missing or set(CANDIDATES) != set(TURNS):
        raise SystemExit(f"the bench lacks agents of the registry, or their bare turns: {missing}")


def _measure_all(
    folder: Path, names: Sequence[str], count: int
) -> dict[str, dict[str, list[Figures]]]:
    results: dict[str, dict[str, list[Figures]]] = {
        name: {kind: [] for kind in KINDS} for name in names
    }
    with Processes(folder / "processes") as processes:
        aws = start_ministack(processes)
        aws.create_bucket(BUCKET)
        urls = _start_stand_ins(processes, folder)
        env = _make_env(folder, urls, aws)
        _airflow(["db", "migrate"], env["bare"])
        for name in names:
            # All ways in turn, so that other load on the machine meets them alike.
            for _ in range(count):
                for kind in KINDS:
                    results[name][kind].append(_fresh(kind, name, urls, env[kind]))
    return results


def _start_stand_ins(processes: Processes, folder: Path) -> dict[str, str]:
    """Return the URLs of the scripted vendors: ``model`` and ``cursor``."""
    script, port_file = folder / "script.yaml", folder / "ports.json"
    script.write_text(SCRIPT)
    command: list[str | Path] = [
        *(sys.executable, "-m", "airflow_agent_provider.rehearsal"),
        *("--script", script, "--port-file", port_file),
    ]
    processes.start("rehearsal", command, cwd=ROOT, ready=port_file.exists)
    return dict(json.loads(port_file.read_text()))


def _make_env(folder: Path, urls: Mapping[str, str], aws: Aws) -> dict[str, dict[str, str]]:
    repository = folder / "repository"
    subprocess.run(["git", "init", "--quiet", str(repository)], check=True)
    identity = ("-c", "user.name=Bench", "-c", "user.email=bench@localhost")
    commit = ["git", *identity, "commit", "--quiet", "--allow-empty", "--message=Start"]
    subprocess.run(commit, cwd=repository, check=True)
    for name, candidate in CANDIDATES.items():
        dags = folder / "dags" / name
        dags.mkdir(parents=True)
        (dags / "bench_idle.py").write_text(IDLE)
        step = STEP.format(dag_id=f"bench_{name}", **vars(candidate))
        (dags / "bench_step.py").write_text(step)
    connections = rehearsal_connections(urls["model"], urls["cursor"])
    connections["acp_scripted"] = _scripted_agent(urls["model"])
    common = {
        **{name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)},
        **{f"AIRFLOW_CONN_{name.upper()}": value for name, value in connections.items()},
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__AGENTS__PROGRAMS": str(ROOT / ".programs"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "BENCH_DAGS": str(folder / "dags"),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW_CONN_AWS_DEFAULT": aws.connection(),
        "AWS_EC2_METADATA_DISABLED": "true",
        "BENCH_REPOSITORY": str(repository),
    }
    stores = {
        "AIRFLOW__AGENTS__ARTIFACTS": f"s3://{BUCKET}/artifacts",
        "AIRFLOW__AGENTS__MIRROR_TABLE": TABLE,
    }
    return {kind: common | (stores if kind == "stores" else {}) for kind in KINDS}


def _scripted_agent(url: str) -> str:
    """Return the connection of the rehearsal's own small agent, which shows what is ours alone."""
    extra = {
        "model": MODEL,
        "command": [sys.executable, "-m", "airflow_agent_provider.rehearsal.acp_agent"],
        "environment": {
            "OPENAI_BASE_URL": "{model_url}",
            "OPENAI_API_KEY": "{model_key}",
            "OPENAI_MODEL": "{model}",
            "PYTHONPATH": str(ROOT),
        },
        "read_only_folders": [sys.prefix, str(ROOT / "airflow_agent_provider")],
        "session_files": ["sessions/{id}.json"],
    }
    return json.dumps({"conn_type": "acp", "host": f"{url}/v1", "password": KEY, "extra": extra})


def _airflow(arguments: list[str], env: Mapping[str, str]) -> None:
    program = Path(sys.executable).with_name("airflow")
    subprocess.run([program, *arguments], env=env, check=True, capture_output=True, timeout=300)


def _fresh(kind: str, name: str, urls: Mapping[str, str], env: Mapping[str, str]) -> Figures:
    url = urls["cursor" if CANDIDATES[name].agent == "cursor" else "model"]
    command = [sys.executable, __file__, "--measure", kind, url, name]
    # Airflow reads the whole folder in each run.
    own = {**env, "AIRFLOW__CORE__DAGS_FOLDER": f"{env['BENCH_DAGS']}/{name}"}
    done = subprocess.run(
        command, env=own, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{name}, {kind}, failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def _report(results: Mapping[str, Mapping[str, Sequence[Figures]]]) -> bool:
    count = min(len(figures) for kinds in results.values() for figures in kinds.values())
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"set-up: {count} processes of each agent and way, {os.cpu_count()} CPUs, "
        f"{platform.machine()}, Python {platform.python_version()}; load at the end {load};\n"
        "  a turn of three requests; seconds, the least of several; MiB resident, of the agent's\n"
        "  program and all that it started; Codex's bare turn in Codex's own sandbox, Copilot's\n"
        "  with the runtime that the step's has"
    )
    reached = [_report_agent(name, kinds) for name, kinds in results.items()]
    return all(reached)


def _report_agent(name: str, kinds: Mapping[str, Sequence[Figures]]) -> bool:
    bare = least(kinds["bare"])
    idle = min(figures.idle for each in kinds.values() for figures in each)
    print(f"{name:<14}{'':10}  later   first of a process   MiB")
    print(f"  {'idle task':<22}{idle:6.2f}")
    print(f"  {'bare turn':<22}{bare.later:6.2f}   {bare.first:6.2f}{_mebibytes(bare):19}")
    reached = True
    for kind, target in TARGETS.items():
        step = least(kinds[kind])
        cold, warm = step.first - idle - bare.first, step.later - idle - bare.later
        reached = reached and cold <= target
        print(f"  {f'step, {kind}':<22}{step.later:6.2f}   {step.first:6.2f}{_mebibytes(step):19}")
        print(f"  {'  overhead':<22}{warm:6.2f}   {cold:6.2f}   (target <= {target:g})")
    return reached


def _mebibytes(figures: Figures) -> int:
    return figures.memory // 1024**2


if __name__ == "__main__":
    sys.exit(main())
