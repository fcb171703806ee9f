"""Airflow's rules for runs, steps and tries, as measured, and what its listeners tell of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from airflow_agent_provider.agents.failures import AuthenticationFailed, failure_to_dict
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.hooks.airflow_api import NOT_BEGUN, RunTruth, TryTruth
from airflow_agent_provider.hooks.mirror_table import MirrorTable, Phase
from airflow_agent_provider.mirror.listener import Seen, run_hint, tell_step
from tests.mirror.stores import MemoryStore

Hint = Callable[[MirrorTable], object]
ENDED = ("success", "failed", "skipped", "upstream_failed")


@dataclass
class StepModel:
    """A task instance and its archived tries."""

    key: StepKey
    number: int = 0
    state: str = ""
    archive: dict[int, str] = field(default_factory=dict)
    orphans: list[int] = field(default_factory=list)


class AirflowModel:
    """One run of some steps: what happens to it, what is hinted, and what the API says."""

    def __init__(self, run_id: str, steps: tuple[str, ...]) -> None:
        self.dag_id, self.run_id = "shop", run_id
        self.steps_of = {name: StepModel(StepKey("shop", run_id, name)) for name in steps}
        self.store = MemoryStore()
        self.hints: list[Hint] = []
        self.state, self.clears = "running", 0
        self._clock = datetime(2026, 11, 23, tzinfo=UTC)
        self.queued = self._tick()
        self.times: dict[tuple[str, int], tuple[datetime, datetime | None]] = {}
        self._hint_run()

    # What happens.

    def begin(self, name: str) -> None:
        step = self.steps_of[name]
        step.number += 1
        step.state = "running"
        self.times[name, step.number] = (self._tick(), None)
        self._hint(step, "running", Phase.RUNNING)

    def end(self, name: str, state: str) -> None:
        step = self.steps_of[name]
        self._account(step, step.number, state)
        self._close(step, state)
        self._hint(step, state, Phase.ENDED)

    def kill(self, name: str, state: str) -> None:
        step = self.steps_of[name]
        step.orphans.append(step.number)
        self._close(step, state)
        self._hint(step, state, Phase.DECIDED)

    def orphan_reports(self, name: str) -> None:
        """A try that Airflow no longer counts says that it succeeded."""
        step = self.steps_of[name]
        self._hint(step, "success", Phase.ENDED, step.orphans.pop())

    def defer(self, name: str) -> None:
        self.steps_of[name].state = "deferred"

    def resume(self, name: str) -> None:
        self.steps_of[name].state = "running"
        self._hint(self.steps_of[name], "running", Phase.RUNNING)

    def skip(self, name: str, state: str) -> None:
        """The scheduler decides without a try: ``skipped`` or ``upstream_failed``."""
        self.steps_of[name].state = state

    def mark(self, name: str, state: str) -> None:
        step = self.steps_of[name]
        step.state = state
        if step.number:
            self._hint(step, state, Phase.DECIDED)

    def clear(self, name: str) -> None:
        step = self.steps_of[name]
        if step.number and step.number not in step.archive:
            step.archive[step.number] = step.state
        step.state = ""
        self.clears += 1
        self.queued = self._tick()
        if self.state != "running":
            self.state = "running"
            self._hint_run()

    def end_run(self, state: str) -> None:
        self.state = state
        self._hint_run()

    # What the API says.

    def run(self, dag_id: str, run_id: str) -> RunTruth | None:
        if (dag_id, run_id) != (self.dag_id, self.run_id):
            return None
        ended = self.queued if self.state != "running" else None
        return RunTruth(
            dag_id, run_id, self.state, {}, self.queued, self.queued, self.queued, ended
        )

    def steps(
        self, dag_id: str, run_id: str | None = None, since: object = None
    ) -> Iterator[TryTruth]:
        return iter([self._row(step, step.number, step.state) for step in self.steps_of.values()])

    def tries(self, asked: TryTruth) -> list[TryTruth]:
        step = self.steps_of[asked.step]
        rows = {n: self._row(step, n, state) for n, state in step.archive.items()}
        if step.number and step.state not in NOT_BEGUN:
            rows.setdefault(step.number, self._row(step, step.number, step.state))
        return [rows[number] for number in sorted(rows)]

    def story(self) -> list[tuple[str, int, int, str]]:
        """Step, map index, try and state of every try that began."""
        return [
            (row.step, row.map_index, row.try_number, row.state)
            for step in self.steps(self.dag_id)
            for row in self.tries(step)
        ]

    # How.

    def _row(self, step: StepModel, number: int, state: str) -> TryTruth:
        began, ended = self.times.get((step.key.step_id, number), (None, None))
        return TryTruth(self.dag_id, self.run_id, step.key.step_id, -1, number, state, began, ended)

    def _close(self, step: StepModel, state: str) -> None:
        began, _ = self.times[step.key.step_id, step.number]
        self.times[step.key.step_id, step.number] = (began, self._tick())
        if state == "up_for_retry":
            step.archive[step.number] = "failed"
        step.state = state

    def _account(self, step: StepModel, number: int, state: str) -> None:
        failed = state != "success"
        failure = failure_to_dict(AuthenticationFailed("no key")) if failed else None
        told = "failed" if failed else "success"
        self.store.write_outcome(AttemptKey(step.key, number), state=told, failure=failure)

    def _hint(self, step: StepModel, state: str, phase: Phase, number: int | None = None) -> None:
        number = step.number if number is None else number
        began, ended = self.times.get((step.key.step_id, number), (None, None))
        seen = Seen(AttemptKey(step.key, number), state, phase, began, ended)
        self.hints.append(lambda table: tell_step(table, self.store, seen))  # type: ignore[arg-type]

    def _hint_run(self) -> None:
        row = SimpleNamespace(
            dag_id=self.dag_id,
            run_id=self.run_id,
            queued_at=self.queued,
            run_after=self.queued,
            start_date=self.queued,
            end_date=None,
            conf={},
            clear_number=self.clears,
        )
        item = run_hint(row, self.state)
        self.hints.append(lambda table: table.hint(item))

    def _tick(self) -> datetime:
        self._clock += timedelta(seconds=1)
        return self._clock
