"""What the reconcile makes of Airflow's answers and the attempts' own accounts."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_agent_provider.agents.failures import (
    OutputInvalid,
    Unavailable,
    failure_to_dict,
)
from airflow_agent_provider.agents.identity import AttemptKey
from airflow_agent_provider.hooks.airflow_api import AirflowApiError
from airflow_agent_provider.hooks.mirror_table import (
    Item,
    MirroredRun,
    as_stored,
    utc_text,
)
from airflow_agent_provider.mirror import reconcile as module
from airflow_agent_provider.mirror.reconcile import Mended, ReconcileError, reconcile
from tests.mirror.model import AirflowModel


class MemoryTable:
    """The table's rules without a server; the real table's tests hold both to them."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str, str], Item] = {}
        self.writes = 0

    def hint(self, item: Item) -> bool:
        old = self.items.get((item.dag_id, item.run_id, item.sk))
        return (old is None or str(old.version) < str(item.version)) and self._put(item)

    def settle(self, item: Item, seen: Item | None) -> bool:
        old = self.items.get((item.dag_id, item.run_id, item.sk))
        return (old and old.stamp) == (seen and seen.stamp) and self._put(item)

    def read_run(self, dag_id: str, run_id: str) -> MirroredRun:
        mine = [i for key, i in sorted(self.items.items()) if key[:2] == (dag_id, run_id)]
        of_kind = {kind: tuple(i for i in mine if i.kind == kind) for kind in ("STEP", "ATTEMPT")}
        run = next((item for item in mine if item.kind == "RUN"), None)
        return MirroredRun(run, of_kind["STEP"], of_kind["ATTEMPT"])

    def of_status(self, kind: str, state: str) -> list[Item]:
        return [i for i in self.items.values() if (i.kind, i.state) == (kind, state)]

    def runs(self, dag_id: str) -> list[Item]:
        return [i for i in self.items.values() if i.kind == "RUN" and i.dag_id == dag_id]

    def _put(self, item: Item) -> bool:
        self.writes += 1
        stored = dataclasses.replace(
            item,
            values=as_stored(item.values),
            stamp=str(self.writes),
            changed=utc_text(datetime.now(UTC)),
        )
        self.items[item.dag_id, item.run_id, item.sk] = stored
        return True


@pytest.fixture
def airflow() -> AirflowModel:
    return AirflowModel("r", ("plan",))


@pytest.fixture
def table() -> MemoryTable:
    return MemoryTable()


def run(table: Any, airflow: Any, **options: Any) -> list[Mended]:
    options = options or {"dag_id": "shop", "run_id": "r"}
    return reconcile(airflow, table, airflow.store, **options)


def item(table: MemoryTable, sk: str) -> dict[str, Any]:
    return dict(table.items["shop", "r", sk].values)


class TestOutcomes:
    def test_a_step_has_its_last_attempts_results(
        self, airflow: AirflowModel, table: MemoryTable
    ) -> None:
        airflow.begin("plan")
        airflow.end("plan", "up_for_retry")
        airflow.begin("plan")
        airflow.end("plan", "success")
        key = AttemptKey(airflow.steps_of["plan"].key, 2)
        airflow.store.write_outcome(key, cost=0.25)
        run(table, airflow)
        step = item(table, "STEP#plan#-1")
        assert (step["try_number"], step["state"], step["cost"]) == (2, "success", 0.25)
        assert step["commit"] == f"{2:040x}"
        assert "failure_class" not in step
        first = item(table, "ATTEMPT#plan#-1#1")
        assert first["failure_class"] == "AuthenticationFailed"
        assert "cost" not in first

    @pytest.mark.parametrize("content", [None, b"", b"[1]", b"{", b"\xff\xfe"])
    def test_a_failed_attempt_without_an_account_was_interrupted(
        self, airflow: AirflowModel, table: MemoryTable, content: bytes | None
    ) -> None:
        airflow.begin("plan")
        airflow.kill("plan", "failed")
        if content is not None:
            key = AttemptKey(airflow.steps_of["plan"].key, 1)
            airflow.store.content[f"{key.prefix}/outcome.json"] = content
        run(table, airflow)
        assert item(table, "ATTEMPT#plan#-1#1")["failure_class"] == "Interrupted"
        assert item(table, "STEP#plan#-1")["failure_class"] == "Interrupted"

    def test_airflow_wins_over_the_attempts_own_account(
        self, airflow: AirflowModel, table: MemoryTable
    ) -> None:
        airflow.begin("plan")
        airflow.store.write_outcome(AttemptKey(airflow.steps_of["plan"].key, 1), state="success")
        airflow.kill("plan", "failed")
        run(table, airflow)
        attempt = item(table, "ATTEMPT#plan#-1#1")
        assert (attempt["state"], attempt["failure_class"]) == ("failed", "Interrupted")
        assert "'success'" in attempt["reason"]
        # What the attempt did is kept.
        assert attempt["commit"] == f"{1:040x}"

    def test_a_user_may_call_a_failure_a_success(
        self, airflow: AirflowModel, table: MemoryTable
    ) -> None:
        airflow.begin("plan")
        airflow.end("plan", "failed")
        run(table, airflow)
        assert item(table, "STEP#plan#-1")["reason"] == "no key"
        airflow.mark("plan", "success")
        (step, attempt) = sorted(run(table, airflow), key=lambda m: m.sk)[::-1]
        assert (step.before, step.after) == ("failed", "success")
        assert attempt.sk == "ATTEMPT#plan#-1#1"
        assert "failure_class" in step.changed
        assert "failure_class" not in item(table, "STEP#plan#-1")

    def test_a_cleared_step_shows_no_results_of_before(
        self, airflow: AirflowModel, table: MemoryTable
    ) -> None:
        airflow.begin("plan")
        airflow.end("plan", "success")
        run(table, airflow)
        airflow.clear("plan")
        run(table, airflow)
        step = item(table, "STEP#plan#-1")
        assert step["state"] == ""
        assert not {"commit", "usage", "agent"} & set(step)
        assert item(table, "ATTEMPT#plan#-1#1")["commit"]

    def test_strange_values_are_no_trouble(self, airflow: AirflowModel, table: MemoryTable) -> None:
        airflow.begin("plan")
        airflow.end("plan", "failed")
        strange = {
            "session": {"agent": "codex", "id": "s-1"},
            "failure": failure_to_dict(OutputInvalid("x" * 50_000, raw="y")),
            "usage": [],
            "cost": "much",
            "artifacts": None,
        }
        airflow.store.write_outcome(AttemptKey(airflow.steps_of["plan"].key, 1), **strange)
        run(table, airflow)
        attempt = item(table, "ATTEMPT#plan#-1#1")
        assert attempt["session_id"] == "s-1"
        assert attempt["raw"] == "y"
        assert "more characters]" in attempt["reason"]
        assert not {"usage", "cost", "artifacts"} & set(attempt)
        assert run(table, airflow) == []


class TestWhatIsWritten:
    def test_the_same_truth_writes_nothing(self, airflow: AirflowModel, table: MemoryTable) -> None:
        airflow.begin("plan")
        airflow.end("plan", "success")
        assert len(run(table, airflow)) == 3
        writes = table.writes
        assert run(table, airflow) == []
        assert table.writes == writes

    def test_settled_outcomes_are_read_again_only_by_a_thorough_look(
        self, airflow: AirflowModel, table: MemoryTable
    ) -> None:
        airflow.begin("plan")
        airflow.end("plan", "success")
        run(table, airflow)
        reads = airflow.store.reads
        options = {"dag_id": "shop", "run_id": "r"}
        airflow.end_run("success")
        run(table, airflow, **options, thorough=False)
        assert airflow.store.reads == reads
        run(table, airflow, **options)
        assert airflow.store.reads > reads

    def test_a_failure_that_airflow_does_not_know_yet_stays(
        self, airflow: AirflowModel, table: MemoryTable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        airflow.begin("plan")
        airflow.end("plan", "failed")
        for hint in airflow.hints:
            hint(table)  # type: ignore[arg-type]
        # Its supervisor reports a moment later.
        airflow.steps_of["plan"].state = "running"
        assert run(table, airflow) == []
        assert item(table, "STEP#plan#-1")["state"] == "failed"
        # But not for ever.
        monkeypatch.setattr(module, "REPORTING", -1.0)
        run(table, airflow)
        assert item(table, "STEP#plan#-1")["state"] == "running"

    def test_the_clear_number_is_kept_while_it_holds(
        self, airflow: AirflowModel, table: MemoryTable
    ) -> None:
        for hint in airflow.hints:
            hint(table)  # type: ignore[arg-type]
        airflow.begin("plan")
        airflow.end("plan", "success")
        run(table, airflow)
        assert item(table, "RUN")["clear_number"] == 0
        airflow.clear("plan")
        run(table, airflow)
        assert "clear_number" not in item(table, "RUN")


class TestTrouble:
    def test_one_runs_trouble_is_not_anothers(
        self, airflow: AirflowModel, table: MemoryTable
    ) -> None:
        airflow.begin("plan")
        others = ["bad", "r"]

        class Api:
            def run(self, dag_id: str, run_id: str) -> Any:
                if run_id == "bad":
                    raise AirflowApiError("HTTP 500")
                return airflow.run(dag_id, run_id)

            def runs(self, dag_id: Any, since: Any) -> Any:
                good = airflow.run("shop", "r")
                return [dataclasses.replace(good, run_id=other) for other in others]

            def has_steps(self, dag_id: str) -> bool:
                return True

            def __getattr__(self, name: str) -> Any:
                return getattr(airflow, name)

        with pytest.raises(ReconcileError, match=r"not mended: shop bad: HTTP 500") as caught:
            reconcile(Api(), table, airflow.store)  # type: ignore[arg-type]
        assert {mended.run_id for mended in caught.value.mended} == {"r"}

    def test_a_store_that_does_not_answer_loses_nothing(
        self, airflow: AirflowModel, table: MemoryTable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        airflow.begin("plan")
        airflow.end("plan", "success")

        def refuse(key: str) -> bytes:
            raise Unavailable("S3 does not answer")

        monkeypatch.setattr(airflow.store, "get", refuse)
        with pytest.raises(ReconcileError, match="S3 does not answer"):
            run(table, airflow)
        # No attempt is called interrupted because S3 is.
        assert table.items == {}

    def test_a_run_that_never_stands_still_is_left_to_the_next(
        self, airflow: AirflowModel, table: MemoryTable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(table, "settle", lambda item, seen: False)
        with pytest.raises(ReconcileError, match="the next reconcile looks again"):
            run(table, airflow)

    def test_a_run_needs_its_dag(self, airflow: AirflowModel, table: MemoryTable) -> None:
        with pytest.raises(ValueError, match="dag id"):
            reconcile(airflow, table, airflow.store, run_id="r")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mended", "line"),
    [
        (Mended("d", "r", "RUN", None, "success"), "d r RUN: was missing, is success"),
        (Mended("d", "r", "STEP#a#-1", "running", ""), "d r STEP#a#-1: running -> no state"),
        (
            Mended("d", "r", "STEP#a#-1", "failed", "success", ("cost", "reason")),
            "d r STEP#a#-1: failed -> success; mended cost, reason",
        ),
        (
            Mended("d", "r", "STEP#a#3", "failed", "failed", (), missing=True),
            "d r STEP#a#3: Airflow no longer has it (was failed)",
        ),
    ],
)
def test_what_was_mended_is_told_in_a_line(mended: Mended, line: str) -> None:
    assert str(mended) == line
