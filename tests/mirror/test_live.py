"""The mirror beside a real Airflow: what its listeners tell, and what only the reconcile sees."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_agent_provider.hooks.airflow_api import AirflowApiError, AirflowApiHook
from airflow_agent_provider.hooks.artifacts import ArtifactStore, open_store
from airflow_agent_provider.hooks.mirror_table import MirroredRun, MirrorTable
from airflow_agent_provider.mirror.reconcile import Mended, reconcile
from tests.mirror.live import Live, live
from tests.mirror.story import Story, airflow_story, mirror_story

__all__ = ["live"]

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("live")]


class Stores:
    """The mirror, the artifacts and Airflow's API of the running Airflow."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.api = AirflowApiHook()
        self.table = MirrorTable("mirror")
        self.artifacts: ArtifactStore = open_store(live.environment["AIRFLOW__AGENTS__ARTIFACTS"])

    def reconcile(self, **range_: Any) -> list[Mended]:
        return reconcile(self.api, self.table, self.artifacts, **range_)

    def mirrored(self, run_id: str, dag_id: str = "probe") -> MirroredRun:
        return self.table.read_run(dag_id, run_id)

    def lose(self, run_id: str, *sks: str) -> None:
        self.table.warm()
        for sk in sks:
            key = {"pk": {"S": f"RUN#probe#{run_id}"}, "sk": {"S": sk}}
            self.table._client.delete_item(TableName="mirror", Key=key)

    def story(self, run_id: str) -> Story:
        return mirror_story(self.table, "probe", run_id)

    def truth(self, run_id: str) -> Story:
        return airflow_story(lambda path: self.live.request("GET", path), "probe", run_id)


@pytest.fixture
def stores(live: Live, monkeypatch: pytest.MonkeyPatch) -> Stores:
    for name, connection in live.connections.items():
        monkeypatch.setenv(name, connection)
    return Stores(live)


@pytest.fixture(scope="session")
def green(live: Live) -> str:
    """A run of the probe in which all went well."""
    live.trigger("probe", "green", {"repository": "https://example.org/shop.git", "ref": "dev"})
    assert live.wait_for_run("probe", "green", "success", "failed") == "success"
    return "green"


def test_a_green_run_is_mirrored_by_its_listeners_alone(stores: Stores, green: str) -> None:
    eventually(lambda: stores.story("green") == stores.truth("green"))
    run = stores.mirrored("green")
    assert run.run is not None
    values = run.run.values
    assert values["repository"] == "https://example.org/shop.git"
    assert values["ref"] == "dev"
    assert values["clear_number"] == 0
    assert str(values["branch"]).startswith("agents/probe/green-")
    steps = {item.step[:2]: item.values for item in run.steps}
    # A user's subclass, also of the plain operator and mapped; but not a task that is no step.
    assert sorted(steps) == [
        ("each", 0),
        ("each", 1),
        ("implement", -1),
        ("plan", -1),
        ("review", -1),
    ]
    plan = steps["plan", -1]
    assert plan["agent"] == "codex"
    assert plan["commit"] == f"{1:040x}"
    assert plan["usage"] == {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120}
    assert "cost" not in plan
    assert plan["artifacts"]
    assert plan["started"] < plan["ended"]
    assert run.attempts[0].values["session_id"] == "session-1"
    # The reconcile has nothing to mend, only to confirm.
    assert stores.reconcile(dag_id="probe", run_id="green") == []


def test_a_killed_task_an_upstream_failure_and_a_clear(live: Live, stores: Stores) -> None:
    conf = {"plan": ["kill"], "implement": ["fail", "kill"], "each": ["skip"]}
    began = datetime.now(UTC)
    live.trigger("probe", "hurt", conf)
    assert live.wait_for_run("probe", "hurt", "success", "failed") == "failed"
    truth = stores.truth("hurt")
    assert truth.steps == {
        ("plan", -1): (2, "success"),
        ("implement", -1): (2, "failed"),
        ("review", -1): (0, "upstream_failed"),
        ("each", 0): (1, "skipped"),
        ("each", 1): (1, "skipped"),
    }
    # No listener told of the upstream failure, nor of what the killed try left unsaid.
    mended = stores.reconcile(since=began, thorough=False)
    assert "STEP#review#-1" in {item.sk for item in mended}
    assert stores.story("hurt") == truth
    attempts = {item.step: item.values for item in stores.mirrored("hurt").attempts}
    for killed in (("plan", -1, 1), ("implement", -1, 2)):
        assert attempts[killed]["failure_class"] == "Interrupted"
        assert attempts[killed]["state"] == "failed"
    assert attempts["implement", -1, 1]["failure_class"] == "OutputInvalid"
    assert attempts["implement", -1, 1]["reason"] == "docs/plan.md is empty"
    assert stores.reconcile(dag_id="probe", run_id="hurt") == []

    live.request(
        "POST",
        "dags/probe/clearTaskInstances",
        dry_run=False,
        dag_run_id="hurt",
        task_ids=["implement", "review", "other"],
        only_failed=False,
        reset_dag_runs=True,
    )
    assert live.wait_for_run("probe", "hurt", "success", "failed") == "success"
    # The clear rightly takes run and steps back, by the listeners already.
    eventually(lambda: stores.story("hurt").state == "success")
    run = stores.mirrored("hurt").run
    assert run is not None
    assert run.values["clear_number"] == 1
    stores.reconcile(dag_id="probe", run_id="hurt")
    assert stores.story("hurt") == stores.truth("hurt")
    assert stores.truth("hurt").steps["implement", -1] == (3, "success")
    assert "failure_class" not in stores.mirrored("hurt").by_key()["STEP#implement#-1"].values
    run = stores.mirrored("hurt").run
    assert run is not None
    assert run.values["clear_number"] == 1


def test_what_a_user_marks_and_clears_while_it_runs(live: Live, stores: Stores) -> None:
    live.trigger("probe", "marked", {"plan": ["wait", "wait"], "each": ["ok"]})
    live.wait_for_step("probe", "marked", "plan", "running")
    eventually(lambda: stores.story("marked").steps[("plan", -1)] == (1, "running"))
    # Clear it while it runs: Airflow ends the try and begins another.
    live.request(
        "POST",
        "dags/probe/clearTaskInstances",
        dry_run=False,
        dag_run_id="marked",
        task_ids=["plan"],
        only_failed=False,
        reset_dag_runs=True,
    )
    eventually(lambda: stores.story("marked").steps[("plan", -1)] == (2, "running"), seconds=60)
    live.request("PATCH", "dags/probe/dagRuns/marked/taskInstances/plan", new_state="failed")
    # Told by the API server's listener.
    eventually(lambda: stores.story("marked").steps[("plan", -1)] == (2, "failed"))
    assert live.wait_for_run("probe", "marked", "success", "failed") == "failed"
    stores.reconcile(dag_id="probe", run_id="marked")
    assert stores.story("marked") == stores.truth("marked")


def test_lost_items_of_a_range_of_runs(live: Live, stores: Stores, green: str) -> None:
    live.trigger("foreign", "foreign", {})
    assert live.wait_for_run("foreign", "foreign", "success", "failed") == "success"
    stores.reconcile()
    stores.lose(green, "STEP#plan#-1", "ATTEMPT#implement#-1#1", "RUN")
    mended = stores.reconcile(since=datetime.now(UTC) - timedelta(hours=1))
    assert sorted(item.sk for item in mended if item.run_id == green) == [
        "ATTEMPT#implement#-1#1",
        "RUN",
        "STEP#plan#-1",
    ]
    assert stores.story(green) == stores.truth(green)
    # Nothing of a DAG that has no step of ours is mirrored.
    assert stores.mirrored("foreign", "foreign").by_key() == {}


def test_the_maintenance_mends_in_a_task(live: Live, stores: Stores, green: str) -> None:
    for look in ("first", "second"):
        stores.lose(green, "STEP#plan#-1")
        live.trigger("look", look, {})
        assert live.wait_for_run("look", look, "success", "failed") == "success"
        assert stores.story(green) == stores.truth(green)


def test_a_deleted_run_is_marked_and_kept(live: Live, stores: Stores) -> None:
    live.trigger("probe", "deleted", {})
    assert live.wait_for_run("probe", "deleted", "success", "failed") == "success"
    stores.reconcile(dag_id="probe", run_id="deleted")
    live.request("DELETE", "dags/probe/dagRuns/deleted")
    mended = stores.reconcile(dag_id="probe")
    gone = [item for item in mended if item.run_id == "deleted"]
    assert len(gone) == 11
    assert all(item.missing for item in gone)
    assert all(item.values["missing"] for item in stores.mirrored("deleted").by_key().values())
    assert stores.reconcile(dag_id="probe", run_id="deleted") == []


def test_the_command(live: Live, stores: Stores, green: str) -> None:
    stores.reconcile(dag_id="probe", run_id=green)
    stores.lose(green, "STEP#plan#-1")
    done = command(live, "--dag-id", "probe", "--run-id", green)
    assert done.returncode == 0, done.stderr
    assert "probe green STEP#plan#-1: was missing, is success" in done.stdout
    assert "1 item was mended; the mirror equals Airflow's truth" in done.stdout


@pytest.mark.parametrize(
    ("change", "arguments", "says"),
    [
        ({"AIRFLOW__AGENTS__MIRROR_TABLE": ""}, (), "set [agents] mirror_table"),
        ({"AIRFLOW__AGENTS__AIRFLOW_API_CONN_ID": "none"}, (), "airflow connections add none"),
        ({}, ("--run-id", "r"), "--run-id needs --dag-id"),
        ({}, ("--since", "yesterday"), "'yesterday' is no ISO 8601 time"),
    ],
)
def test_the_command_without_what_it_needs(
    live: Live, change: dict[str, str], arguments: tuple[str, ...], says: str
) -> None:
    changed = dataclasses.replace(live, environment={**live.environment, **change})
    done = command(changed, *arguments)
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("airflow agents mirror reconcile: ")
    assert says in line
    assert "Traceback" not in done.stderr + done.stdout


class TestTheConnection:
    def test_it_works(self, stores: Stores) -> None:
        works, told = stores.api.test_connection()
        assert works, told
        assert stores.live.url in told

    def test_a_wrong_password(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, stores.live.url, "admin", "wrong")
        works, told = AirflowApiHook().test_connection()
        assert not works
        assert "HTTP 401" in told
        assert "'airflow_api'" in told

    def test_a_token(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, stores.live.url, None, stores.live._token())
        assert AirflowApiHook().test_connection()[0]

    def test_a_bad_token(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, stores.live.url, None, "no-token")
        works, told = AirflowApiHook().test_connection()
        assert not works
        assert "HTTP 40" in told

    def test_every_page_is_read(
        self, stores: Stores, green: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("airflow_agent_provider.hooks.airflow_api.PAGE", 2)
        assert len(list(stores.api.steps("probe", green))) == 5
        runs = list(stores.api.runs("probe"))
        assert len({run.run_id for run in runs}) == len(runs) >= 1

    def test_a_run_that_is_not_there(self, stores: Stores) -> None:
        assert stores.api.run("probe", "nowhere") is None
        assert list(stores.api.steps("probe", "nowhere")) == []
        with pytest.raises(AirflowApiError, match="HTTP 4"):
            list(stores.api.steps(None, "nowhere"))


def use(monkeypatch: pytest.MonkeyPatch, url: str, login: str | None, password: str) -> None:
    values = {"conn_type": "airflow_api", "host": url, "login": login, "password": password}
    monkeypatch.setenv("AIRFLOW_CONN_AIRFLOW_API", json.dumps(values))


def command(live: Live, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["airflow", "agents", "mirror", "reconcile", *arguments],
        env=live.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def eventually(holds: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not _holds(holds):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.2)


def _holds(holds: Any) -> bool:
    try:
        return bool(holds())
    except (AssertionError, KeyError):
        return False
