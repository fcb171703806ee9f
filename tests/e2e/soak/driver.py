"""Runs of the soak's workflow, in each of which processes are killed, and what must hold then."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import yaml

from airflow_agent_provider.agents.identity import StepKey
from infra.local.api import ENDED, ApiError, NotInTime, wait_for
from tests.e2e.live import HERE as E2E
from tests.e2e.live import Live
from tests.e2e.soak.history import History, read_history
from tests.e2e.soak.kills import Kill, plan_kills
from tests.e2e.story import told_by_airflow, told_by_the_branch
from tests.e2e.victims import Victim, find_victim, processes_below, session_home

HERE = Path(__file__).parent
#: The script by which the scripted models act: a second's work, and a note that it is done.
_ACT = 'sleep 0.8; mkdir -p done; grep -qxF "$2" done/$1.txt || echo "$2" >> done/$1.txt\n'
#: Seconds, for a run with its retries, of which each killed supervisor's takes most of a minute.
_RUN_WITHIN = 420.0
#: Seconds until what belongs to a killed process is gone, and until a planned kill has its chance.
_GONE_WITHIN = 60.0
_CHANCE_WITHIN = 240.0
_POLL = 0.1
_TRIGGER_TRIES = 5


@dataclass(frozen=True)
class Workflow:
    """The soak's workflow with certain agents.

    :param dag_id: its name.
    :param steps: its steps, in their order.
    """

    dag_id: str
    steps: list[str]


@dataclass
class Killed:
    """A kill that was done.

    :param kill: as it was planned.
    :param attempt: number of the attempt that it met.
    :param at: when, seconds since the epoch.
    :param retried_after: seconds until the next attempt began; None if there was none.
    """

    kill: Kill
    attempt: int
    at: float
    retried_after: float | None = None


@dataclass
class Report:
    """What came of one run.

    :param seed: its seed.
    :param dag_id: its workflow.
    :param run_id: Airflow's id.
    :param killed: the kills that were done.
    :param missed: the kills that came too late.
    :param tries: how many attempts each step took.
    :param seconds: how long the run took.
    :param faults: what does not hold; empty if all does.
    """

    seed: int
    dag_id: str
    run_id: str = ""
    killed: list[Killed] = field(default_factory=list)
    missed: list[Kill] = field(default_factory=list)
    tries: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def write_workflows(live: Live, agents: Sequence[str]) -> list[Workflow]:
    """Write the workflow once per agent, so that over all of them each agent does each step.

    :param agents: names of agents; the steps take them in turn.
    """
    text = (HERE / "workflow.yaml").read_text()
    found = []
    for turn in range(len(agents)):
        definition = yaml.safe_load(text)
        definition["name"] = f"soak-{turn + 1}"
        for number, step in enumerate(definition["steps"]):
            step["agent"] = agents[(turn + number) % len(agents)]
        (live.dags / f"{definition['name']}.yaml").write_text(yaml.safe_dump(definition))
        found.append(Workflow(definition["name"], [step["id"] for step in definition["steps"]]))
    for workflow in found:
        live.api.wait_for_dag(workflow.dag_id)
    return found


def soak(
    live: Live,
    seeds: Collection[int],
    *,
    agents: Sequence[str] = ("codex",),
    at_once: int = 3,
    say: Callable[[Report], None] = lambda _: None,
) -> list[Report]:
    """Run the workflow once per seed and hold each run against one that nothing disturbed.

    :param live: the Airflow.
    :param seeds: a seed decides what is killed in its run, and when.
    :param agents: names of the agents that do the steps in turn.
    :param at_once: how many runs go on at once.
    :param say: hears of each run as it ends; in the order of their ends.
    :raises RuntimeError: if an undisturbed run is not green itself.
    """
    workflows = write_workflows(live, agents)
    with ThreadPoolExecutor(at_once, thread_name_prefix="soak") as pool:
        undisturbed = list(pool.map(lambda workflow: _undisturbed(live, workflow), workflows))
        chosen = [(seed, seed % len(workflows)) for seed in seeds]
        futures = [
            pool.submit(_SoakRun(live, workflows[turn], seed, undisturbed[turn]).go)
            for seed, turn in chosen
        ]
        reports = []
        for future in as_completed(futures):
            reports.append(future.result())
            say(reports[-1])
    return reports


def _undisturbed(live: Live, workflow: Workflow) -> History:
    run = _SoakRun(live, workflow, 0, None)
    report = run.go()
    if report.faults:
        raise RuntimeError(f"nothing was killed, and yet: {'; '.join(report.faults)}")
    return run.history


class _SoakRun:
    """One run.

    :param undisturbed: what it has to leave; None for the run that nothing disturbs.
    """

    def __init__(
        self, live: Live, workflow: Workflow, seed: int, undisturbed: History | None
    ) -> None:
        self._live = live
        self._workflow = workflow
        self._undisturbed = undisturbed
        self._report = Report(seed, workflow.dag_id)
        #: Of each step that had succeeded when something was killed: its try and its times.
        self._finished: dict[str, Any] = {}

    def go(self) -> Report:
        """Run, kill, wait for the end, and look at what is left."""
        report = self._report
        began = time.monotonic()
        try:
            report.run_id = self._trigger()
            for kill in self._plan():
                if not any(self._do(each) for each in (kill, *self._later(kill))):
                    report.missed.append(kill)
            self._live.api.wait_for_run(*self._run, within=_RUN_WITHIN)
            report.seconds = time.monotonic() - began
            report.faults += self._faults()
        except (ApiError, NotInTime, AssertionError) as error:
            report.faults.append(str(error))
        return report

    @cached_property
    def history(self) -> History:
        """What the run has left for good."""
        return read_history(self._live, self._remote, *self._run, self._workflow.steps)

    @property
    def _run(self) -> tuple[str, str]:
        return self._workflow.dag_id, self._report.run_id

    def _trigger(self) -> str:
        name = f"{self._workflow.dag_id}-{self._report.seed}-{time.time_ns()}"
        self._remote = self._live.repository(name, {"README.md": "# Soak\n", "act": _ACT})
        conf = {"repository": str(self._remote)}

        for _ in range(_TRIGGER_TRIES):
            # Runs that are triggered at once lock the one file of the test's database.
            with contextlib.suppress(ApiError):
                return self._live.api.trigger(self._workflow.dag_id, conf, run_id=name)
            time.sleep(_POLL)
            if any(run["dag_run_id"] == name for run in self._live.api.runs(self._workflow.dag_id)):
                return name
        return self._live.api.trigger(self._workflow.dag_id, conf, run_id=name)

    def _plan(self) -> list[Kill]:
        if self._undisturbed is None:
            return []
        return plan_kills(self._report.seed, noted_lines(self._workflow.steps))

    def _key(self, step: str) -> StepKey:
        return StepKey(*self._run, step)

    # --- killing ---------------------------------------------------------------------------

    def _do(self, kill: Kill) -> bool:
        """Kill when the moment has come; return False if it came too late."""
        attempt = self._await_moment(kill)
        victim = attempt and self._kill(kill, attempt)
        if not attempt or not victim:
            return False
        self._report.killed.append(Killed(kill, attempt["try_number"], time.time()))
        if kill.target.task or not kill.target.agent:
            wait_for(
                lambda: not victim.living() or None,
                _GONE_WITHIN,
                lambda: f"{kill}: the attempt's processes live on: {victim.living()}",
            )
        return True

    def _later(self, kill: Kill) -> list[Kill]:
        """Return what a kill becomes if it comes too late for its step: one of the steps after."""
        following = self._workflow.steps[self._workflow.steps.index(kill.step) + 1 :]
        return [replace(kill, step=step, line=0) for step in following]

    def _await_moment(self, kill: Kill) -> dict[str, Any] | None:
        """Return the attempt that is to be killed, when its time has come; None if it is over."""
        before = max(
            (k.attempt for k in self._report.killed if k.kill.step == kill.step), default=0
        )
        attempt: dict[str, Any] = {}

        def come() -> bool | None:
            found = self._live.api.task_instance(*self._run, kill.step)
            attempt.update(found)
            if found["state"] in (*ENDED, "upstream_failed"):
                return True
            at_work = found["state"] == "running" and found["pid"] and found["try_number"] > before
            return (at_work and self._noted(kill.step) >= kill.line) or None

        wait_for(come, _CHANCE_WITHIN, lambda: f"{kill}: its moment does not come: {attempt}")
        if attempt["state"] != "running":
            return None
        time.sleep(kill.delay)
        return attempt

    def _noted(self, step: str) -> int:
        file = self._live.stack.workspaces / self._key(step).prefix / "tree" / _notes(step)
        try:
            return len(file.read_text().splitlines())
        except OSError:
            return 0

    def _kill(self, kill: Kill, attempt: Mapping[str, Any]) -> Victim | None:
        """Kill; return the processes that belonged together, None if they were gone."""
        self._finished = {
            found["task_id"]: _identity(found)
            for found in self._live.api.task_instances(*self._run)
            if found["state"] == "success"
        }
        victim = self._victim(kill, attempt)
        if victim is None:
            return None
        try:
            if kill.target.task:
                victim.task.kill()
            elif not kill.target.agent:
                victim.supervisor.kill()
            if kill.target.agent:
                (victim.box if kill.target.is_box else victim.program).kill()
        except psutil.NoSuchProcess:
            return None
        return victim

    def _victim(self, kill: Kill, attempt: Mapping[str, Any]) -> Victim | None:
        """Return the attempt's processes; its agent's too, where that is to be killed."""
        deadline = time.monotonic() + _GONE_WITHIN
        while time.monotonic() < deadline:
            try:
                task = psutil.Process(attempt["pid"])
                supervisor = task.parent()
            except psutil.NoSuchProcess:
                return None
            if supervisor is None or "airflow" not in " ".join(supervisor.cmdline()):
                return None
            victim = find_victim(session_home(self._live, self._key(kill.step)))
            if victim is not None and victim.task == task:
                return victim
            if not kill.target.agent:
                return Victim(task, supervisor, [])
            time.sleep(_POLL)
        return None

    # --- what must hold --------------------------------------------------------------------

    def _faults(self) -> Iterator[str]:
        live, run = self._live, self._run
        state = live.api.run(*run)["state"]
        if state != "success":
            yield f"the run is {state}"
        self._report.tries = {step: self._tries(step) for step in self._workflow.steps}
        yield from self._redone()
        yield from self._left()
        if state != "success":
            return
        if self._undisturbed is not None:
            yield from self._undisturbed.differences(self.history)
        _, commits = told_by_airflow(live, *run)
        if told_by_the_branch(self._remote, *run) != commits:
            yield "the branch's commits are not those that the steps told Airflow"

    def _tries(self, step: str) -> int:
        tries = self._live.api.tries(*self._run, step)
        began = {found["try_number"]: _timestamp(found["start_date"]) for found in tries}
        for killed in self._report.killed:
            if killed.kill.step == step and killed.attempt + 1 in began:
                killed.retried_after = began[killed.attempt + 1] - killed.at
        return len(tries)

    def _redone(self) -> Iterator[str]:
        for step, tries in self._report.tries.items():
            kills = sum(killed.kill.step == step for killed in self._report.killed)
            if tries > 1 + kills:
                yield f"{step} was tried {tries} times and killed {kills} times"
        for found in self._live.api.task_instances(*self._run):
            before = self._finished.get(found["task_id"])
            if before is not None and before != _identity(found):
                yield f"{found['task_id']} had succeeded ({before}) and is {_identity(found)} now"

    def _left(self) -> Iterator[str]:
        folder = self._live.stack.workspaces / self._key("any").run_prefix
        try:
            wait_for(
                lambda: not processes_below(folder) or None,
                _GONE_WITHIN,
                lambda: f"processes are left: {processes_below(folder)}",
            )
        except NotInTime as error:
            yield str(error)
        if scratch := sorted(folder.glob("*/*/scratch/*")):
            yield f"folders of attempts are left: {scratch}"


def noted_lines(steps: Sequence[str]) -> dict[str, int]:
    """Return how many actions of each step note that they are done."""
    script = yaml.safe_load((E2E / "rehearsal.yaml").read_text())["steps"]
    return {
        step: sum(str(action.get("run", "")).startswith("sh act ") for action in script[step])
        for step in steps
    }


def _notes(step: str) -> str:
    return f"done/{step.removeprefix('soak-')}.txt"


def _identity(task: Mapping[str, Any]) -> tuple[Any, ...]:
    return task["try_number"], task["start_date"], task["end_date"]


def _timestamp(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else math.inf
