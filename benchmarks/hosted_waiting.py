"""What a thousand waiting hosted runs cost: requests to the vendor, delay until seen, and memory.

``python benchmarks/hosted_waiting.py`` starts the stand-in for Cursor in a process of its own, with
the vendor's real limit of 20 requests a minute for each key, and a thousand runs that go on for
ever. A fresh process waits for all of them, with the real triggers in Airflow's own trigger runner
(its event loop and its code around each trigger; without the database and the supervisor, which
only bring triggers and take events). At random times a known set of runs is ended at the vendor,
by another key. Two ways:

- shared: the triggers as they are, which share one poller;
- one by one: the named baseline, a trigger that looks at its run by itself every 10 seconds, with a
  client of its own, as most triggers do. Its key has no limit: what it asks for is counted.

Requests are counted by the stand-in. The delay until seen is from the end of a run at the vendor to
the trigger's event. Memory is the resident set of the whole process, sampled while it waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from infra.local.processes import Processes  # noqa: E402
from infra.local.stack import FOREIGN  # noqa: E402

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger

RUNS = 1000
PER_MINUTE = 20
PAGE = 100
POLL = 10.0
#: For each way: how many runs end, within how many seconds, and the key that waits. Five ends a
#: minute are more than the limit bears in the long run: each takes four requests on the whole, to
#: be seen, to be fetched by a worker (two), and for the next run to start.
WAYS = {"shared": (16, 180.0, "key_of_the_bench"), "one by one": (8, 40.0, "unlimited_bench")}
TARGET_MB = 300.0
#: Seconds after the last end in which it must have been seen.
PATIENCE = 120.0
SCRIPT = "steps: {'*': [{fail: {how: hang}}]}\n"

Run = tuple[str, str]
MakeTrigger = Callable[[Run], "BaseTrigger"]


def wait(way: str, folder: Path) -> None:
    """Run in a fresh process: wait for the runs, and tell what was seen when."""
    told = json.loads((folder / "runs.json").read_text())
    make = shared_triggers() if way == "shared" else single_triggers()
    (folder / "result.json").write_text(json.dumps(asyncio.run(wait_for_all(make, told, folder))))


def shared_triggers() -> MakeTrigger:
    """Return what makes the provider's trigger of a run."""
    from airflow_agent_provider.triggers.hosted import HostedRunTrigger

    def make(run: Run) -> BaseTrigger:
        return HostedRunTrigger(
            agent="cursor",
            conn_id=None,
            agent_id=run[0],
            run_id=run[1],
            timeout_at=time.time() + 3600,
            stall=3600,
        )

    return make


def single_triggers() -> MakeTrigger:
    """Return what makes the baseline's trigger of a run."""
    from airflow.triggers.base import BaseTrigger, TriggerEvent

    from airflow_agent_provider.agents.failures import Unavailable
    from airflow_agent_provider.hooks.cursor import CursorHook

    class OneByOne(BaseTrigger):
        def __init__(self, ids: Run) -> None:
            super().__init__()
            self.ids = ids

        def serialize(self) -> tuple[str, dict[str, Any]]:
            return "OneByOne", {"ids": self.ids}

        async def run(self) -> AsyncIterator[TriggerEvent]:
            hook = CursorHook()
            try:
                await asyncio.sleep(random.uniform(0, POLL))
                ended = False
                while not ended:
                    with suppress(Unavailable):
                        ended = (await hook.alook(*self.ids)).ended
                    await asyncio.sleep(0 if ended else POLL)
            finally:
                await hook.aclose()
            yield TriggerEvent({"run_id": self.ids[1]})

    return OneByOne


async def wait_for_all(make: MakeTrigger, told: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run a trigger for each run until the ends are seen; return when that was, and the memory."""
    from airflow.jobs.triggerer_job_runner import TriggerRunner

    runner, tasks, seen = TriggerRunner(), [], dict[str, float]()
    most = before = resident()
    for number, run in enumerate(told["runs"]):
        runner.triggers[number] = {"name": "hosted", "events": 0}  # type: ignore[typeddict-item]
        tasks.append(asyncio.create_task(runner.run_trigger(number, make(run))))
    (folder / "started").touch()
    deadline = time.monotonic() + told["seconds"]
    while len(seen) < told["ends"] and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        most = max(most, resident())
        while runner.events:
            seen[runner.events.popleft().event.payload["run_id"]] = time.time()
    waiting = sum(not task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {"seen": seen, "before": before, "most": most, "waiting": waiting}


def resident() -> float:
    """Return this process's resident set in MB."""
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


class Vendor:
    """The stand-in, asked with a key of its own that no limit holds.

    :param url: its base URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, auth=("unlimited_setup", ""), timeout=60)

    def start_runs(self, count: int) -> list[Run]:
        """Start ``count`` runs that go on for ever; return their ids."""

        def start(_: int) -> Run:
            body = {"agentId": f"bc-{uuid.uuid4()}", "prompt": {"text": "Work."}}
            run = self._client.post("/v1/agents", json=body).raise_for_status().json()["run"]
            return run["agentId"], run["id"]

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(start, range(count)))

    def end_run(self, run: Run) -> float:
        """End a run; return when it was over."""
        path = f"/v1/agents/{run[0]}/runs/{run[1]}/cancel"
        self._client.post(path).raise_for_status()
        return time.time()

    def asked(self, since: float) -> list[dict[str, Any]]:
        """Return what was asked since then, but for what this class asked itself."""
        journal = self._client.get("/_rehearsal/requests").json()
        return [e for e in journal if e["at"] > since and e["method"] == "GET"]


def measure(way: str, vendor: Vendor, runs: list[Run], folder: Path) -> dict[str, Any]:
    """Let a fresh process wait in one way while runs end; return what came of it.

    :param way: a key of ``WAYS``.
    :param vendor: the stand-in.
    :param runs: the runs; those that end are taken out.
    :param folder: an empty folder for what both processes tell each other.
    """
    count, within, key = WAYS[way]
    ending = random.sample(runs, count)
    told = {"runs": runs, "ends": count, "seconds": within + PATIENCE}
    (folder / "runs.json").write_text(json.dumps(told))
    child = subprocess.Popen(
        [sys.executable, __file__, "--wait", way, folder],
        env=environment(folder, vendor.url, key),
        stdout=subprocess.DEVNULL,
        stderr=(log := (folder / "log").open("w")),
    )
    try:
        until(lambda: (folder / "started").exists() or child.poll() is not None, 120)
        since = time.time()
        over = end_all(vendor, ending, within)
        if child.wait(within + PATIENCE + 120) != 0:
            raise SystemExit(f"the waiting process failed:\n{(folder / 'log').read_text()[-4000:]}")
        asked = vendor.asked(since)
    finally:
        child.kill()
        child.wait(30)
        log.close()
    started = len(runs)
    runs[:] = [run for run in runs if run not in ending]
    result = json.loads((folder / "result.json").read_text())
    delays = sorted(seen - over[run_id] for run_id, seen in result["seen"].items())
    return {**result, "asked": asked, "delays": delays, "ended": count, "started": started}


def end_all(vendor: Vendor, ending: Sequence[Run], within: float) -> dict[str, float]:
    """End runs at random times within some seconds; return when each was over."""
    began, over = time.monotonic(), {}
    for run, after in zip(ending, sorted(random.uniform(5, within) for _ in ending), strict=True):
        time.sleep(max(0.0, began + after - time.monotonic()))
        over[run[1]] = vendor.end_run(run)
    return over


def until(done: Callable[[], bool], seconds: float) -> None:
    """Wait until ``done`` returns true."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit("the waiting process did not start in time")
        time.sleep(0.1)


def environment(folder: Path, url: str, key: str) -> dict[str, str]:
    """Return the environment of the process that waits."""
    connection = {
        "conn_type": "cursor",
        "host": url,
        "password": key,
        "extra": {"requests_per_minute": PER_MINUTE, "poll_interval": POLL},
    }
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)},
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW_CONN_CURSOR_DEFAULT": json.dumps(connection),
        "PYTHONPATH": str(ROOT),
    }


def busiest_minute(times: Sequence[float]) -> int:
    """Return the most requests within any 60 seconds."""
    return max((sum(at <= other < at + 60 for other in times) for at in times), default=0)


def report(way: str, result: Mapping[str, Any]) -> bool:
    """Print the figures of one way; return whether it keeps the vendor's limit and the memory."""
    asked, delays = result["asked"], result["delays"]
    times = [entry["at"] for entry in asked]
    seconds = max(times) - min(times)
    lists = sum(entry["path"].startswith("/v1/agents?") for entry in asked)
    refused = sum(entry["status"] == 429 for entry in asked)
    p95 = statistics.quantiles(delays, n=20, method="inclusive")[-1]
    kept = busiest_minute(times) <= PER_MINUTE and refused == 0
    seen = len(delays) == result["ended"] and result["waiting"] == result["started"] - len(delays)
    fits = result["most"] <= TARGET_MB
    print(f"{way}: {result['started']} runs waited for, over {seconds:.0f} s")
    print(
        f"  requests a minute   {len(asked) / seconds * 60:8.1f}   busiest {busiest_minute(times)}"
        f"   (lists {lists}, looks {len(asked) - lists}, refused {refused})"
    )
    print(
        f"  delay until seen    p50 {statistics.median(delays):.1f} s   p95 {p95:.1f} s"
        f"   max {delays[-1]:.1f} s   ({len(delays)} of {result['ended']} ends seen)"
    )
    print(f"  memory              before {result['before']:.0f} MB   most {result['most']:.0f} MB")
    return kept and seen and fits


def main() -> int:
    """Wait in this process, or measure both ways in fresh ones."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wait", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.wait:
        wait(options.wait[0], Path(options.wait[1]))
        return 0
    with tempfile.TemporaryDirectory(prefix="hosted-waiting-") as name:
        folder = Path(name)
        with Processes(folder / "processes") as processes:
            vendor = Vendor(start_stand_in(processes, folder))
            runs = vendor.start_runs(RUNS)
            results = {}
            for way in WAYS:
                (folder / way).mkdir()
                results[way] = measure(way, vendor, runs, folder / way)
    describe()
    reached = report("shared", results["shared"])
    report("one by one", results["one by one"])
    print(
        f"target: at most {PER_MINUTE} requests in any minute, none refused, every end seen, "
        f"memory <= {TARGET_MB:.0f} MB: {'reached' if reached else 'MISSED'}"
    )
    return 0 if reached else 1


def start_stand_in(processes: Processes, folder: Path) -> str:
    """Start the stand-in for Cursor; return its URL."""
    script, port_file = folder / "script.yaml", folder / "ports.json"
    script.write_text(SCRIPT)
    command: list[str | Path] = [
        *(sys.executable, "-m", "airflow_agent_provider.rehearsal"),
        *("--script", script, "--port-file", port_file),
        *("--cursor-requests-per-minute", str(PER_MINUTE)),
    ]
    processes.start("rehearsal", command, cwd=ROOT, ready=port_file.exists)
    return str(json.loads(port_file.read_text())["cursor"])


def describe() -> None:
    """Print what the figures rest on."""
    from airflow_agent_provider.triggers.poller import ROUND_SHARE
    from airflow_agent_provider.triggers.schedule import Bucket

    rate = Bucket(PER_MINUTE, 0.0).rate * 60
    pages = RUNS // PAGE
    print(
        f"set-up: {os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()};"
    )
    print(
        f"  a page of the list has at most {PAGE} agents, so {RUNS} runs are {pages} requests a "
        f"sweep:\n  at {PER_MINUTE} a minute no sweep can be shorter than "
        f"{pages / PER_MINUTE * 60:.0f} s. Of the {rate:.0f} that are sent at most ({PER_MINUTE} "
        f"hold in any\n  minute), {rate * ROUND_SHARE:.0f} are for the sweeps, about "
        f"{pages / (rate * ROUND_SHARE) * 60:.0f} s each; the rest is for what cannot wait and "
        f"for the workers."
    )


if __name__ == "__main__":
    sys.exit(main())
