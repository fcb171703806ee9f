"""``make failures``: every failure class in a running Airflow, and what became of it.

Each is provoked in the real Codex program by the scripted model, in the workflow
``dags/failure_classes.py``; what is told is read back through Airflow's API.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from airflow_agent_provider.agents.identity import StepKey
from airflow_agent_provider.hooks.mirror_table import MirrorTable
from infra.local.api import ENDED, NotInTime
from infra.local.aws import ROOT
from infra.local.processes import end_leftovers
from infra.local.report import table
from infra.local.stack import TABLE
from tests.e2e.live import Live, start_live
from tests.e2e.victims import find_victim, session_home

WORKFLOW = "failure-classes"
FOLDER = ROOT / ".demo" / "failures"
#: The step whose task process is killed from outside.
KILLED = "Interrupted.task"
_RUN_WITHIN = 420.0
_POLL = 0.5
_DELAY = re.compile(r"; retry 1 of 3,? (?:in|after Airflow's plain delay of) (?P<seconds>[\d.]+) s")


@dataclass
class Told:
    """What Airflow tells of a step's first attempt.

    :param step: the step, which has the name of its failure class.
    :param state: the task's state after that attempt.
    :param line: the line of the log that says what went wrong and what follows.
    :param lines: how many such lines there are.
    :param waited: seconds until the second attempt began; None if there was none.
    :param ended: the task's state in the end.
    :param mirrored: the failure class that the mirror has of the attempt.
    """

    step: str
    state: str = ""
    line: str = ""
    lines: int = 0
    waited: float | None = None
    ended: str = ""
    mirrored: str | None = None

    @property
    def failure_class(self) -> str:
        """The class that the step shows."""
        return self.step.partition(".")[0]

    @property
    def delay(self) -> float | None:
        """The chosen delay in seconds, as the log has it; None for no retry."""
        found = _DELAY.search(self.line)
        return float(found["seconds"]) if found else None


@dataclass
class _Watch:
    """Notes the state after each first attempt; kills the one that is to be killed."""

    live: Live
    run_id: str
    states: dict[str, str] = field(default_factory=dict)
    killed: bool = False

    def look(self) -> bool:
        """Look once; return whether the run has ended."""
        ended = self.live.api.run(WORKFLOW, self.run_id)["state"] in ENDED
        for task in self.live.api.task_instances(WORKFLOW, self.run_id):
            if task["try_number"] == 1 and task["state"] in ("up_for_retry", *ENDED):
                self.states.setdefault(task["task_id"], task["state"])
            if task["task_id"] == KILLED and task["state"] == "running" and not self.killed:
                self._kill()
        return ended

    def _kill(self) -> None:
        step = StepKey(WORKFLOW, self.run_id, KILLED)
        at_work = self.live.stack.workspaces / step.prefix / "tree" / "hit.txt"
        victim = find_victim(session_home(self.live, step)) if at_work.exists() else None
        if victim is not None:
            victim.task.kill()
            self.killed = True


def provoke(live: Live, say: Callable[[str], None] = lambda _: None) -> list[Told]:
    """Run the workflow, and return what Airflow tells of each step.

    :param say: hears how far the run is.
    :raises NotInTime: if it does not end in time.
    """
    live.api.wait_for_dag(WORKFLOW)
    run_id = live.api.trigger(WORKFLOW)
    watch = _Watch(live, run_id)
    deadline = time.monotonic() + _RUN_WITHIN
    known = 0
    while not watch.look():
        if time.monotonic() > deadline:
            raise NotInTime(f"the run has not ended; first attempts: {watch.states}")
        if len(watch.states) > known:
            known = len(watch.states)
            say(f"{known} classes have shown themselves")
        time.sleep(_POLL)
    done = live.stack.airflow(
        *("agents", "mirror", "reconcile", "--dag-id", WORKFLOW, "--run-id", run_id)
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    live.store()  # leads aws_default to the stand-in
    mirrored = MirrorTable(TABLE).read_run(WORKFLOW, run_id).by_key()
    return [
        _told(
            live,
            run_id,
            task,
            state=watch.states.get(task["task_id"], ""),
            mirrored=mirrored[f"ATTEMPT#{task['task_id']}#-1#1"].values.get("failure_class"),
        )
        for task in live.api.task_instances(WORKFLOW, run_id)
    ]


def _told(
    live: Live, run_id: str, task: dict[str, Any], *, state: str, mirrored: str | None
) -> Told:
    step = task["task_id"]
    told = Told(step, state, ended=task["state"], mirrored=mirrored)
    # Of an attempt that was killed, the next one tells.
    log = live.api.log(WORKFLOW, run_id, step, try_number=2 if step == KILLED else 1)
    lines = [line for line in log.splitlines() if line.startswith(f"{told.failure_class}: ")]
    told.lines, told.line = len(lines), lines[0] if lines else ""
    tries = live.api.tries(WORKFLOW, run_id, step)
    if len(tries) > 1:
        ended, began = (
            datetime.fromisoformat(t) for t in (tries[0]["end_date"], tries[1]["start_date"])
        )
        told.waited = (began - ended).total_seconds()
    return told


def shown(rows: list[Told]) -> str:
    """Return the table, each row followed by its line of the log."""
    cells: list[tuple[str, ...]] = [
        ("class", "state after it", "chosen delay", "waited", "in the end", "mirror")
    ]
    cells += [
        (
            told.step,
            told.state,
            "no retry" if told.delay is None else f"{told.delay:g} s",
            "-" if told.waited is None else f"{told.waited:.1f} s",
            told.ended,
            told.mirrored or "-",
        )
        for told in rows
    ]
    heading, rule, *lines = table(cells).splitlines()
    told_lines = (f"{line}\n    {told.line}" for line, told in zip(lines, rows, strict=True))
    return "\n".join([heading, rule, *told_lines])


def main() -> int:
    """Print the table."""
    end_leftovers(FOLDER)
    shutil.rmtree(FOLDER, ignore_errors=True)
    print("starting Airflow", flush=True)
    with start_live(FOLDER) as live:
        rows = provoke(live, lambda text: print(text, flush=True))
    print(f"\n{shown(rows)}")
    return 0 if all(told.lines == 1 for told in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
