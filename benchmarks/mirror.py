"""What the mirror adds to a step: writes per state change, and time.

Each sample is a fresh Python process, as each task is, in which the listeners are called as Airflow
calls them, with the step's own work between its beginning and its end: the time of a short turn of
an agent, or none, where the clients cannot be ready in time.

Needs ministack: on the PATH, in ``.ministack/bin``, or named by ``AGENTS_TEST_MINISTACK``.

    python benchmarks/mirror.py [SAMPLES]
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Seconds of a step's own work: a short turn of an agent.
WORK = 4.0


def sample(run_id: str, work: float) -> None:
    """Run in a fresh process: call the listeners for one step, print what that took."""
    from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME
    from airflow_agent_provider.hooks.mirror_table import MirrorTable
    from airflow_agent_provider.mirror import listener

    writes = 0
    put = MirrorTable._put

    def counted(self: MirrorTable, *arguments: Any) -> bool:
        nonlocal writes
        writes += 1
        return put(self, *arguments)

    MirrorTable._put = counted  # type: ignore[method-assign]
    step_type = type("RuntimeTaskInstance", (SimpleNamespace,), {"__module__": "airflow.sdk.x"})
    step = step_type(
        dag_id="bench",
        run_id=run_id,
        task_id="step",
        map_index=-1,
        try_number=1,
        start_date=datetime.now(UTC),
        end_date=None,
        state="running",
        task=SimpleNamespace(operator_name=STEP_OPERATOR_NAME),
    )
    began = time.perf_counter()
    listener.on_task_instance_running("queued", step)
    running = time.perf_counter() - began
    time.sleep(work)
    at_running = writes
    began = time.perf_counter()
    listener.on_task_instance_success("running", step)
    ended = time.perf_counter() - began
    print(json.dumps({"added": running + ended, "writes": max(at_running, writes - at_running)}))


def measure(
    name: str, endpoint: str, samples: int, target: float, of: str, work: float = WORK
) -> bool:
    """Take the samples, print their summary; return whether the target is reached."""
    taken = []
    with tempfile.TemporaryDirectory() as home:
        for number in range(samples):
            done = subprocess.run(
                [sys.executable, __file__, "--sample", f"{name}-{number}", str(work)],
                env=environment(Path(home), endpoint),
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            )
            taken.append(json.loads(done.stdout.strip().splitlines()[-1]))
    added = sorted(one["added"] for one in taken)
    value = statistics.median(added) if of == "p50" else added[-1]
    writes = max(one["writes"] for one in taken)
    reached = value <= target and writes <= 2
    print(
        f"{name:<22} p50 {statistics.median(added) * 1000:6.1f} ms   max {added[-1] * 1000:6.1f} ms"
        f"   writes per state change {writes}   target {of} <= {target * 1000:.0f} ms: "
        f"{'reached' if reached else 'MISSED'}"
    )
    return reached


def environment(home: Path, endpoint: str) -> dict[str, str]:
    """Return the environment of a sample."""
    extra = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    connection = {"conn_type": "aws", "login": "111122223333", "password": "bench", "extra": extra}
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__AGENTS__MIRROR_TABLE": "bench",
        "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(connection),
        "PYTHONPATH": str(ROOT),
    }


@contextlib.contextmanager
def ministack() -> Iterator[str]:
    """Run ministack; yield its URL."""
    told = os.environ.get("AGENTS_TEST_MINISTACK")
    program = told or shutil.which("ministack") or str(ROOT / ".ministack" / "bin" / "ministack")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    settings = {"GATEWAY_PORT": port, "BIND_HOST": "127.0.0.1", "MINISTACK_HOST": "127.0.0.1"}
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [program],
            env={**inherited, **settings},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for _ in range(300):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/_ministack/health", timeout=1)
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def main(samples: int) -> int:
    """Measure; return 0 if every target is reached."""
    with ministack() as url:
        reached = [measure("table alive", url, samples, 0.05, "p50")]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        few = max(3, samples // 4)
        reached.append(measure("connection refused", url, few, 0.5, "max"))
        silent.listen()
        silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        reached.append(measure("never answers", silent_url, few, 0.5, "max"))
        reached.append(measure("never answers, no work", silent_url, few, 0.5, "max", work=0.0))
    return 0 if all(reached) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--sample"]:
        sample(sys.argv[2], float(sys.argv[3]))
    else:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 12))
