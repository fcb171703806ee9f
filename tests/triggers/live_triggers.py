"""A triggerer in small, as a program: runs serialized triggers in Airflow's own runner.

    python live_triggers.py TRIGGERS EVENTS

``TRIGGERS`` is a JSON file of class paths and arguments, as the database has them. Each event is
added to ``EVENTS`` as a line of JSON as soon as it is there.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from airflow.jobs.triggerer_job_runner import TriggerRunner


async def run_all(triggers: list[tuple[str, dict[str, Any]]], events: Path) -> None:
    runner = TriggerRunner()
    waiting = set()
    for number, (path, arguments) in enumerate(triggers):
        trigger = runner.get_trigger_by_classpath(path)(**arguments)
        runner.triggers[number] = {"name": path, "events": 0}  # type: ignore[typeddict-item]
        waiting.add(asyncio.create_task(runner.run_trigger(number, trigger)))
    while waiting:
        _, waiting = await asyncio.wait(waiting, timeout=0.1)
        with events.open("a") as file:
            while runner.events:
                file.write(json.dumps(runner.events.popleft().event.payload) + "\n")


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    asyncio.run(run_all(given, Path(sys.argv[2])))
