"""What an agent step costs beyond the bare turn of the Codex SDK that it wraps.

``python benchmarks/step_overhead.py`` plays one script in fresh processes, in three ways:

- bare: the SDK alone, in a working tree that is there already;
- local: a task of a DAG, with artifacts in local files and no mirror;
- stores: the same, with artifacts in S3 and the mirror in DynamoDB (ministack).

A step's overhead is its task's time, less that of a task that does nothing, less the bare turn's.
Airflow has run tasks in the process before, so that nothing of its own is cold. The first step of a
process pays for imports and clients, as every task of a real worker does; the later ones show what
is left without them. Each figure is the least of several, which other load disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from infra.local.agents import MODEL  # noqa: E402
from infra.local.aws import Aws, start_ministack  # noqa: E402
from infra.local.processes import Processes  # noqa: E402
from infra.local.stack import BUCKET, FOREIGN, TABLE  # noqa: E402

PROCESSES = 3
LATER = 4
TARGETS = {"local": 0.15, "stores": 0.3}
KINDS = ("idle", "bare", *TARGETS)
SCRIPT = """\
steps:
  work:
    - write: {path: docs/notes.md, content: "# Notes"}
    - run: cat docs/notes.md
    - say: Written.
"""
DAGS = {
    "bench_idle": """\
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG

with DAG("bench_idle", schedule=None) as dag:
    PythonOperator(task_id="work", python_callable=lambda: None)
""",
    "bench_step": """\
import os

from airflow.sdk import DAG

from airflow_agent_provider.operators.codex import CodexAgentOperator

with DAG("bench_step", schedule=None) as dag:
    CodexAgentOperator(
        task_id="work", prompt="Write notes.", repository=os.environ["BENCH_REPOSITORY"]
    )
""",
}
#: As the prompt of the step ends, so that the scripted model knows the step.
BARE_PROMPT = "Write notes.\n\nStep: work of workflow bench, run bench\n"

Timed = Callable[[], float]


def bare_turn(url: str) -> float:
    """Return the seconds of one turn with the SDK alone, from its import to the program's end."""
    with tempfile.TemporaryDirectory() as folder:
        home, tree = Path(folder) / "home", Path(folder) / "tree"
        home.mkdir()
        subprocess.run(["git", "init", "--quiet", str(tree)], check=True)
        started = time.perf_counter()
        _turn(url, home, tree)
        seconds = time.perf_counter() - started
        if not (tree / "docs" / "notes.md").exists():
            raise SystemExit("the bare turn has not done what the script says")
    return seconds


def _turn(url: str, home: Path, tree: Path) -> None:
    from openai_codex import ApprovalMode, Codex, CodexConfig, Sandbox

    settings = (
        'model_provider="p"',
        'model_providers.p.name="p"',
        f'model_providers.p.base_url="{url}/v1"',
        'model_providers.p.wire_api="responses"',
        'model_providers.p.env_key="BENCH_KEY"',
        "features.plugins=false",
        "analytics.enabled=false",
    )
    env = {"CODEX_HOME": str(home), "BENCH_KEY": "key"}
    codex = Codex(CodexConfig(cwd=str(tree), env=env, config_overrides=settings))
    try:
        thread = codex.thread_start(
            cwd=str(tree),
            model=MODEL,
            model_provider="p",
            sandbox=Sandbox.workspace_write,
            approval_mode=ApprovalMode.deny_all,
        )
        for _ in thread.turn(BARE_PROMPT).stream():
            pass
    finally:
        codex.close()


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


def measure(kind: str, url: str) -> dict[str, Any]:
    """Return the seconds of the first call in this process and of the later ones."""
    idle = dag_run("bench_idle")
    for _ in range(3):
        idle()
    if kind == "idle":
        work = idle
    elif kind == "bare":
        work = lambda: bare_turn(url)  # noqa: E731
    else:
        work = dag_run("bench_step")
    return {"first": work(), "later": [work() for _ in range(LATER)]}


def main() -> int:
    """Measure one way in this process, or all of them in fresh ones."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return 0
    with tempfile.TemporaryDirectory(prefix="step-overhead-") as folder:
        reached = _report(_measure_all(Path(folder)))
    print("targets reached" if reached else "TARGETS MISSED")
    return 0 if reached else 1


def _measure_all(folder: Path) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    with Processes(folder / "processes") as processes:
        aws = start_ministack(processes)
        aws.create_bucket(BUCKET)
        url = _start_model(processes, folder)
        env = _make_env(folder, url, aws)
        _airflow(["db", "migrate"], env["idle"])
        # All kinds in turn, so that other load on the machine meets them alike.
        for number in range(PROCESSES * len(KINDS)):
            kind = KINDS[number % len(KINDS)]
            results[kind].append(_fresh(kind, url, env[kind]))
    return results


def _start_model(processes: Processes, folder: Path) -> str:
    script, port_file = folder / "script.yaml", folder / "ports.json"
    script.write_text(SCRIPT)
    command: list[str | Path] = [
        *(sys.executable, "-m", "airflow_agent_provider.rehearsal"),
        *("--script", script, "--port-file", port_file),
    ]
    processes.start("rehearsal", command, cwd=ROOT, ready=port_file.exists)
    return str(json.loads(port_file.read_text())["model"])


def _make_env(folder: Path, url: str, aws: Aws) -> dict[str, dict[str, str]]:
    repository = folder / "repository"
    subprocess.run(["git", "init", "--quiet", str(repository)], check=True)
    identity = ("-c", "user.name=Bench", "-c", "user.email=bench@localhost")
    commit = ["git", *identity, "commit", "--quiet", "--allow-empty", "--message=Start"]
    subprocess.run(commit, cwd=repository, check=True)
    (folder / "dags").mkdir()
    for name, text in DAGS.items():
        (folder / "dags" / f"{name}.py").write_text(text)
    codex = {
        "conn_type": "codex",
        "host": f"{url}/v1",
        "password": "key-of-the-bench",
        "extra": {"model": MODEL},
    }
    common = {
        **{name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)},
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW_CONN_CODEX_DEFAULT": json.dumps(codex),
        "AIRFLOW_CONN_AWS_DEFAULT": aws.connection(),
        "AWS_EC2_METADATA_DISABLED": "true",
        "BENCH_REPOSITORY": str(repository),
    }
    stores = {
        "AIRFLOW__AGENTS__ARTIFACTS": f"s3://{BUCKET}/artifacts",
        "AIRFLOW__AGENTS__MIRROR_TABLE": TABLE,
    }
    return {kind: common | (stores if kind == "stores" else {}) for kind in KINDS}


def _airflow(arguments: list[str], env: Mapping[str, str]) -> None:
    program = Path(sys.executable).with_name("airflow")
    subprocess.run([program, *arguments], env=env, check=True, capture_output=True, timeout=300)


def _fresh(kind: str, url: str, env: Mapping[str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", kind, url]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{kind} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _report(results: Mapping[str, list[dict[str, Any]]]) -> bool:
    first = {kind: min(each["first"] for each in results[kind]) for kind in KINDS}
    later = {
        kind: min(value for each in results[kind] for value in each["later"]) for kind in KINDS
    }
    print(f"set-up: {PROCESSES} processes each, {os.cpu_count()} CPUs, {platform.machine()};")
    print(f"  Python {platform.python_version()}; a turn of three requests; seconds")
    print(f"idle task      {later['idle']:6.2f}")
    print(f"bare turn      {later['bare']:6.2f}  first of a process {first['bare']:6.2f}")
    reached = True
    for kind, target in TARGETS.items():
        cold = first[kind] - later["idle"] - first["bare"]
        warm = later[kind] - later["idle"] - later["bare"]
        reached = reached and cold <= target
        print(
            f"step, {kind:<7}  {later[kind]:6.2f}  first of a process {first[kind]:6.2f}\n"
            f"  overhead     {warm:6.2f}  first of a process {cold:6.2f}  (target <= {target:g})"
        )
    return reached


if __name__ == "__main__":
    sys.exit(main())
