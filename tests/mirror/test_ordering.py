"""Hints in any order, repeated or late, and reconciles that overtake each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from airflow_agent_provider.hooks.mirror_table import Item, MirroredRun, MirrorTable, Version
from airflow_agent_provider.mirror.reconcile import reconcile
from infra.local.aws import Aws
from tests.mirror.model import ENDED, AirflowModel

NAMES = ("plan", "implement")
names = st.sampled_from(NAMES)
_numbers = itertools.count()


class MirrorMachine(RuleBasedStateMachine):
    """A run lives its life while hints and reconciles reach the table in any order."""

    table: MirrorTable

    def __init__(self) -> None:
        super().__init__()
        self.airflow = AirflowModel(f"run-{next(_numbers)}", NAMES)
        self.versions: dict[str, Version] = {}

    @rule(name=names)
    def begin(self, name: str) -> None:
        if self.airflow.steps_of[name].state in ("", "up_for_retry"):
            self.airflow.begin(name)

    @rule(name=names, state=st.sampled_from(("success", "failed", "up_for_retry")))
    def end(self, name: str, state: str) -> None:
        if self.airflow.steps_of[name].state == "running":
            self.airflow.end(name, state)

    @rule(name=names, state=st.sampled_from(("failed", "up_for_retry")))
    def kill(self, name: str, state: str) -> None:
        if self.airflow.steps_of[name].state == "running":
            self.airflow.kill(name, state)

    @rule(name=names)
    def orphan_reports(self, name: str) -> None:
        if self.airflow.steps_of[name].orphans:
            self.airflow.orphan_reports(name)

    @rule(name=names)
    def defer_or_resume(self, name: str) -> None:
        state = self.airflow.steps_of[name].state
        if state == "running":
            self.airflow.defer(name)
        elif state == "deferred":
            self.airflow.resume(name)

    @rule(name=names, state=st.sampled_from(("skipped", "upstream_failed")))
    def skip(self, name: str, state: str) -> None:
        if self.airflow.steps_of[name].state == "":
            self.airflow.skip(name, state)

    @rule(name=names, state=st.sampled_from(("success", "failed")))
    def mark(self, name: str, state: str) -> None:
        if self.airflow.steps_of[name].state in ENDED:
            self.airflow.mark(name, state)

    @rule(name=names)
    def clear(self, name: str) -> None:
        if self.airflow.steps_of[name].state in ENDED:
            self.airflow.clear(name)

    @rule(state=st.sampled_from(("success", "failed")))
    def end_run(self, state: str) -> None:
        states = [step.state for step in self.airflow.steps_of.values()]
        if self.airflow.state == "running" and all(state in ENDED for state in states):
            self.airflow.end_run(state)

    @rule(data=st.data())
    def deliver_hints(self, data: st.DataObject) -> None:
        """Any hints of any time, repeated or never before."""
        picked = data.draw(st.lists(st.sampled_from(self.airflow.hints), max_size=4))
        for hint in picked:
            hint(self.table)

    @rule()
    def reconcile(self) -> None:
        reconcile_run(self.table, self.airflow)
        assert_truth(self.table, self.airflow)
        self.versions = {}

    @rule(name=names, data=st.data())
    def reconcile_overtaken_by_another(self, name: str, data: st.DataObject) -> None:
        """Between what one reconcile read and what it writes, the world goes on."""
        begin = data.draw(st.booleans())

        def meanwhile() -> None:
            (self.begin if begin else self.clear)(name)
            self.defer_or_resume(name)
            self.deliver_hints(data)
            reconcile_run(self.table, self.airflow)

        reconcile_run(_Overtaken(self.table, meanwhile), self.airflow)
        assert_truth(self.table, self.airflow)
        self.versions = {}

    @invariant()
    def nothing_goes_back_by_hints(self) -> None:
        items = self.table.read_run(self.airflow.dag_id, self.airflow.run_id).by_key()
        for sk, item in items.items():
            assert self.versions.get(sk, item.version) <= item.version
            self.versions[sk] = item.version

    def teardown(self) -> None:
        for hint in [*self.airflow.hints, *reversed(self.airflow.hints)]:
            hint(self.table)
        reconcile_run(self.table, self.airflow)
        assert_truth(self.table, self.airflow)
        # Whatever still arrives now tells of the past.
        for hint in reversed(self.airflow.hints):
            hint(self.table)
        assert_truth(self.table, self.airflow)
        assert reconcile_run(self.table, self.airflow) == []


class _Overtaken:
    """The table for a reconcile that is held up once, just before its first write."""

    def __init__(self, table: MirrorTable, meanwhile: Any) -> None:
        self._table = table
        self._meanwhile = meanwhile

    def read_run(self, dag_id: str, run_id: str) -> MirroredRun:
        return self._table.read_run(dag_id, run_id)

    def settle(self, item: Item, seen: Item | None) -> bool:
        meanwhile, self._meanwhile = self._meanwhile, lambda: None
        meanwhile()
        return self._table.settle(item, seen)


def reconcile_run(table: Any, airflow: AirflowModel) -> list[Any]:
    return reconcile(
        airflow,  # type: ignore[arg-type]
        table,
        airflow.store,  # type: ignore[arg-type]
        dag_id=airflow.dag_id,
        run_id=airflow.run_id,
    )


def assert_truth(table: MirrorTable, airflow: AirflowModel) -> None:
    mirrored = table.read_run(airflow.dag_id, airflow.run_id)
    assert mirrored.run is not None
    assert mirrored.run.state == airflow.state
    assert [(*item.step, item.state) for item in mirrored.attempts] == sorted(airflow.story())
    assert {item.step[0]: (item.values["try_number"], item.state) for item in mirrored.steps} == {
        name: (step.number, step.state) for name, step in airflow.steps_of.items()
    }


@pytest.fixture
def table(aws: Aws) -> Iterator[MirrorTable]:
    table = MirrorTable("mirror")
    table.ensure_table()
    return table


@pytest.mark.integration
def test_any_order_of_hints_and_reconciles_tells_the_truth(table: MirrorTable) -> None:
    MirrorMachine.table = table
    run_state_machine_as_test(
        MirrorMachine,
        settings=settings(
            max_examples=40,
            # Shrinking against a real server takes minutes; the steps are few anyway.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.integration
@pytest.mark.parametrize("number", [0, 1])
def test_a_truth_that_was_right_again_is_not_undone(table: MirrorTable, number: int) -> None:
    """A skip is read, and cleared before it is written; a second reconcile finds nothing wrong."""
    airflow = AirflowModel(f"again-{number}", ("plan",))
    if number:
        airflow.begin("plan")
        airflow.end("plan", "success")
        airflow.clear("plan")
    reconcile_run(table, airflow)
    airflow.skip("plan", "skipped")

    def meanwhile() -> None:
        airflow.clear("plan")
        reconcile_run(table, airflow)

    reconcile_run(_Overtaken(table, meanwhile), airflow)
    assert_truth(table, airflow)


@pytest.mark.integration
def test_a_truth_that_was_overtaken_is_refused(table: MirrorTable) -> None:
    """An ended try is read, and cleared before it is written; another reconcile wrote the clear."""
    airflow = AirflowModel("overtaken", ("plan",))
    airflow.begin("plan")
    reconcile_run(table, airflow)
    airflow.end("plan", "failed")

    def meanwhile() -> None:
        airflow.clear("plan")
        reconcile_run(table, airflow)
        airflow.begin("plan")
        airflow.hints[-1](table)

    reconcile_run(_Overtaken(table, meanwhile), airflow)
    assert_truth(table, airflow)


@pytest.mark.integration
def test_a_late_hint_does_not_undo_a_users_mark_of_the_run(table: MirrorTable) -> None:
    airflow = AirflowModel("marked", ("plan",))
    airflow.begin("plan")
    airflow.end("plan", "failed")
    airflow.end_run("failed")
    airflow.end_run("success")
    reconcile_run(table, airflow)
    for hint in airflow.hints:
        hint(table)
    assert_truth(table, airflow)
