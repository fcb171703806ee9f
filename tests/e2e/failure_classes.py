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

from airflow_agent_provider.agents.failures import FAILURE_CLASSES
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
#: The delay of the steps' own rule, and what the vendor said.
_RULE, _VENDOR = 8.0, 11.0
#: What the line of each step says between its class and what follows.
_WORDS = {
    "AuthenticationFailed": "refused the API key of the connection 'codex_default'",
    "QuotaExhausted": "the quota of the vendor's account is used up",
    "BudgetExceeded": "the run's budget of 10 tokens is spent",
    "PolicyViolation": "do not let it change .github/workflows/ci.yaml",
    "InvalidDefinition": "has no attribute 'nowhere'",
    "RateLimited": "the rate limit of the model's API is reached",
    "RateLimited.told": "the rate limit of the model's API is reached",
    "Unavailable": "HTTP status 503",
    "Stalled": "no sign of life for 6 s",
    "TimedOut": "timeout of 20 s",
    "Interrupted.agent": "the Codex program ended in the middle of the turn",
    KILLED: "attempt 1 ended without a word, its process was killed",
    "ContextExhausted": "no longer fits the model's context",
    "OutputInvalid": "output report.md is missing",
    "VerificationFailed": "the check `test -e proof.txt` failed with exit code 1",
    "AgentFailed": "Out of luck.",
}
_RUN_WITHIN = 500.0
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


def faults(rows: list[Told]) -> list[str]:
    """Return what is wrong with what Airflow tells; empty if nothing is."""
    missing = [f"{step}: there is no such step" for step in _WORDS.keys() - {t.step for t in rows}]
    unseen = FAILURE_CLASSES.keys() - {told.failure_class for told in rows}
    missing += [f"{name}: no step shows this class" for name in unseen]
    return missing + [fault for told in rows for fault in _faults(told)]


def _faults(told: Told) -> list[str]:
    retried = FAILURE_CLASSES[told.failure_class].retryable
    delay = None if not retried else _VENDOR if told.step == "RateLimited.told" else _RULE
    follows = "no retry: none can help"
    if delay is not None:
        by = "as the vendor said" if delay == _VENDOR else "by the step's rule"
        follows = f"retry 1 of 3 in {delay:g} s, {by}"
    if told.step == KILLED:
        follows = f"retry 1 of 3, after Airflow's plain delay of {_RULE:g} s"
    waited = told.waited is None if delay is None else (told.waited or 0.0) >= delay
    holds = {
        "one line": told.lines == 1,
        "its words": _WORDS[told.step] in told.line and told.line.endswith(f"; {follows}"),
        "its delay": told.delay == delay,
        "the wait": waited,
        "the state": told.state == ("up_for_retry" if retried else "failed"),
        # What makes a step fail is over by its second attempt.
        "the end": told.ended == ("success" if retried else "failed"),
        "the mirror": told.mirrored == told.failure_class,
    }
    return [f"{told.step}: {what}" for what, held in holds.items() if not held]


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
    """Print the table; return 1 if anything in it is not as it must be."""
    end_leftovers(FOLDER)
    shutil.rmtree(FOLDER, ignore_errors=True)
    print("starting Airflow", flush=True)
    with start_live(FOLDER) as live:
        rows = provoke(live, lambda text: print(text, flush=True))
    print(f"\n{shown(rows)}")
    wrong = faults(rows)
    print("".join(f"\nWRONG  {fault}" for fault in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
