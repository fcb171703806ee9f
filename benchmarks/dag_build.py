"""How much CPU a workflow's DAG costs, against the same operators written by hand in Python.

``python benchmarks/dag_build.py`` makes a folder of 1,000 workflows of 10 steps each and measures,
in fresh processes that have imported what Airflow's own have imported before they parse:

- the whole folder, by the factory and by hand: CPU per DAG, and the ratio of the two;
- one task's own parse: its DAG alone, in the whole folder and in a folder of its own.

The factory makes operators outside of their DAG and adds them to it, which spares Airflow two
copies of the DAG's parameters per operator. People write ``dag=dag`` or a ``with`` block, and so
does the version by hand that the ratio is of; a second one, for comparison, adds them late too.

Each figure is the least of several processes' CPU times, which other load disturbs least.
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
from collections.abc import Callable
from pathlib import Path

WORKFLOWS = 1000
STEPS = 10
PROCESSES = 3
TARGET_RATIO = 1.3
TARGET_OWN_MS = 15.0

LOADER = """\
from dag_factory import load_workflows  # each definition beside this file becomes an Airflow DAG

globals().update(load_workflows(__file__))
"""

# What the factory passes, as a person would write it: no reading, no checks, no digests.
BY_HAND = """\
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Param

from airflow_agent_provider.operators.codex import CodexAgentOperator

folder = Path(__file__).parent
folders = (str(folder), str(folder.parent))


def workflow(number):
    dag = DAG(
        f"workflow-{number:04}",
        description="Ten steps, one after the other",
        catchup=False,
        tags=["agents", "benchmark"],
        doc_md="Ten steps, one after the other",
        params={
            "issue": Param("1", description="Number of the issue", type="string"),
            "repository": Param("https://example.com/repository.git", type=["string", "null"]),
            "ref": Param("main", type=["string", "null"]),
        },
        template_searchpath=folders,
    )
    upstream = None
    for step in range(%(steps)d):
        task = CodexAgentOperator(
            %(born_into)stask_id=f"step-{step}",
            prompt=f"prompts/step-{step}.md",
            prompt_folders=folders,
            output_path=f"docs/step-{step}.md",
            repository="{{ params.repository or '' }}",
            ref="{{ params.ref or '' }}",
            retries=3,
            retry_delay=timedelta(minutes=1),
            retry_exponential_backoff=2,
            max_retry_delay=timedelta(minutes=10),
            timeout=timedelta(minutes=45),
        )
        %(added_to)sif upstream is not None:
            task.set_upstream(upstream)
        upstream = task
    return dag


for number in range(%(workflows)d):
    globals()[f"workflow_{number}"] = workflow(number)
"""


def definition(number: int) -> str:
    """Return a workflow as a team would write it."""
    lines = [
        f"name: workflow-{number:04}",
        "description: Ten steps, one after the other",
        "tags: [benchmark]",
        "params:",
        '  issue: {type: string, default: "1", description: Number of the issue}',
        "repository: {url: https://example.com/repository.git, ref: main}",
        "defaults: {agent: codex}",
        "steps:",
    ]
    for step in range(STEPS):
        lines += [
            f"  - id: step-{step}",
            f"    prompt: prompts/step-{step}.md",
            f"    output: docs/step-{step}.md",
            "    retry: {count: 3, delay: 1m}",
            "    timeout: 45m",
        ]
        if step:
            lines.append(f"    depends_on: step-{step - 1}")
    return "\n".join(lines) + "\n"


def make_folder(root: Path, workflows: int) -> Path:
    """Make a folder of workflows with its prompts; return the loader's path."""
    (root / "dags").mkdir(parents=True)
    (root / "prompts").mkdir()
    for number in range(workflows):
        (root / "dags" / f"workflow-{number:04}.yaml").write_text(definition(number))
    for step in range(STEPS):
        text = (
            f"# Step {step}\n\nDo what issue {{{{ params.issue }}}} asks for.\n" + 60 * "Words.\n"
        )
        (root / "prompts" / f"step-{step}.md").write_text(text)
    loader = root / "dags" / "workflows.py"
    loader.write_text(LOADER)
    sizes = {"steps": STEPS, "workflows": workflows}
    usual = {"born_into": "dag=dag,\n            ", "added_to": ""}
    late = {"born_into": "", "added_to": "dag.add_task(task)\n        "}
    loader.with_name("by_hand.py").write_text(BY_HAND % {**sizes, **usual})
    loader.with_name("by_hand_late.py").write_text(BY_HAND % {**sizes, **late})
    return loader


def measure(file: str) -> dict[str, float]:
    """Return the CPU milliseconds of this process for one parse of a DAG file."""
    # What a task's process and the DAG processor's have imported by then.
    import airflow.sdk.execution_time.task_runner  # noqa: F401
    from airflow.dag_processing.dagbag import BundleDagBag

    def timed(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return (time.process_time() - start) * 1000

    operators = timed(lambda: __import__("airflow_agent_provider.operators.codex"))
    factory = timed(lambda: __import__("dag_factory"))
    namespace = {"__file__": file, "__name__": "benchmark"}
    code = compile(Path(file).read_text(), file, "exec")
    parse = timed(lambda: exec(code, namespace))
    dags = [value for value in namespace.values() if type(value).__name__ == "DAG"]
    if not dags or any(len(dag.tasks) != STEPS for dag in dags):
        raise SystemExit(f"{file} made {len(dags)} DAGs, or some without {STEPS} steps")
    assert BundleDagBag is not None
    return {"operators": operators, "factory": factory, "parse": parse, "dags": len(dags)}


def fresh(file: Path, dag_id: str | None = None) -> dict[str, float]:
    """Return the least CPU milliseconds of several fresh processes."""
    env = {**os.environ, "AIRFLOW__CORE__LOAD_EXAMPLES": "false"}
    env.pop("_AIRFLOW_PARSING_CONTEXT_DAG_ID", None)
    if dag_id is not None:
        env["_AIRFLOW_PARSING_CONTEXT_DAG_ID"] = dag_id
    command = [sys.executable, __file__, "--measure", str(file)]
    results = []
    for _ in range(PROCESSES):
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: min(result[name] for result in results) for name in results[0]}


def report(root: Path) -> bool:
    """Measure, print, and return whether the targets are reached."""
    loader = make_folder(root / "many", WORKFLOWS)
    alone = make_folder(root / "one", 1)
    factory = fresh(loader)
    by_hand = fresh(loader.with_name("by_hand.py"))
    by_hand_late = fresh(loader.with_name("by_hand_late.py"))
    own = fresh(loader, "workflow-0000")
    own_alone = fresh(alone, "workflow-0000")

    per_dag = factory["parse"] / factory["dags"]
    per_dag_by_hand = by_hand["parse"] / by_hand["dags"]
    per_dag_late = by_hand_late["parse"] / by_hand_late["dags"]
    ratio = per_dag / per_dag_by_hand
    print(f"set-up: {WORKFLOWS} workflows x {STEPS} steps in one folder, {STEPS} shared prompts;")
    print(f"  Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()};")
    print(f"  CPU time, least of {PROCESSES} fresh processes each")
    print(f"DAG build, factory:  {per_dag:6.2f} ms per DAG")
    print(f"DAG build, by hand:  {per_dag_by_hand:6.2f} ms per DAG")
    print(f"ratio:               {ratio:6.2f}    (target <= {TARGET_RATIO})")
    print(f"by hand, added late: {per_dag_late:6.2f} ms per DAG, so {per_dag / per_dag_late:.2f}")
    print(f"one task's own parse:{own['parse']:6.1f} ms  (target <= {TARGET_OWN_MS:g})")
    print(f"  in a folder of one:{own_alone['parse']:6.1f} ms, so x{_times(own, own_alone)}")
    print(f"  before it, imports:{own['factory']:6.1f} ms the factory, and")
    print(f"                     {own['operators']:6.1f} ms the operators, which any DAG file pays")
    return ratio <= TARGET_RATIO and own["parse"] <= TARGET_OWN_MS


def _times(value: dict[str, float], base: dict[str, float]) -> str:
    return f"{value['parse'] / base['parse']:.2f} for {WORKFLOWS}"


def main() -> None:
    """Measure one file in this process, or all there is to measure in fresh ones."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    with tempfile.TemporaryDirectory(prefix="dag-build-") as folder:
        reached = report(Path(folder))
    print("targets reached" if reached else "TARGETS MISSED")


if __name__ == "__main__":
    main()
