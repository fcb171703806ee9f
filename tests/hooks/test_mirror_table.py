"""The mirror's table: moto for its simple logic, ministack for conditions and concurrency."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from moto import mock_aws

from airflow_agent_provider.hooks.mirror_table import (
    FOR_HINTS,
    FOR_TRUTHS,
    TABLE,
    MirrorError,
    MirrorTable,
    MirrorUnavailable,
    Phase,
    Version,
    as_stored,
    attempt_item,
    fit,
    run_item,
    step_item,
)
from tests.stacks import ROOT, free_port

PLACE = ("shop", "manual__2026-11-23T01:02:03+00:00", "plan", -1)


def at(number: int, phase: Phase) -> Version:
    return Version(try_number=number, phase=phase)


def step(number: int, phase: Phase, **values: Any) -> Any:
    return step_item(*PLACE, at(number, phase), values)


@pytest.fixture
def moto_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[MirrorTable]:
    connection = {"conn_type": "aws", "login": "k", "password": "s"}
    connection["extra"] = json.dumps({"region_name": "us-east-1"})
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    with mock_aws():
        yield MirrorTable("mirror")


def made(table: MirrorTable) -> MirrorTable:
    table.warm()
    table._client.create_table(TableName=table.name, **TABLE)
    return table


class TestVersion:
    def test_its_text_sorts_as_it_does(self) -> None:
        versions = [
            Version(clear, number, phase)
            for clear in ("", "2026-11-23T01:00:00.000000Z", "2026-11-23T01:00:00.000001Z")
            for number in (0, 1, 2, 9, 10, 100)
            for phase in Phase
        ]
        assert [str(v) for v in sorted(versions)] == sorted(map(str, versions))
        assert [Version.parse(str(v)) for v in versions] == versions


class TestWhatIsStored:
    def test_a_run_comes_back_whole(self, moto_table: MirrorTable) -> None:
        table = made(moto_table)
        values = {
            "state": "success",
            "usage": {"input_tokens": 7, "output_tokens": 0},
            "cost": 0.0123,
            "artifacts": {"patch": "file:///a"},
            "started": "2026-11-23T01:00:00.000000Z",
        }
        table.hint(run_item(*PLACE[:2], Version("q", 0, Phase.RUNNING), {"state": "running"}))
        table.hint(step(1, Phase.ENDED, **values))
        for number in (1, 2, 10):
            table.hint(attempt_item(*PLACE, at(number, Phase.ENDED), values))
        run = table.read_run(*PLACE[:2])
        assert run.run is not None
        assert run.run.state == "running"
        assert [dict(item.values) for item in run.steps] == [values]
        assert [item.step for item in run.attempts] == [
            ("plan", -1, 1),
            ("plan", -1, 2),
            ("plan", -1, 10),
        ]

    def test_another_run_is_not_read(self, moto_table: MirrorTable) -> None:
        table = made(moto_table)
        table.hint(run_item("shop", "r10", Version("q"), {}))
        assert table.read_run("shop", "r1").run is None

    def test_unknown_cost_is_absent_and_a_free_one_is_zero(self, moto_table: MirrorTable) -> None:
        table = made(moto_table)
        table.hint(step(1, Phase.ENDED, cost=None))
        table.hint(attempt_item(*PLACE, at(1, Phase.ENDED), {"cost": 0.0}))
        run = table.read_run(*PLACE[:2])
        assert "cost" not in run.steps[0].values
        assert run.attempts[0].values["cost"] == 0

    def test_a_large_item_is_cut_and_says_so(self, moto_table: MirrorTable) -> None:
        table = made(moto_table)
        values = {
            "reason": "é" * 600_000,
            "artifacts": {f"file-{n}": "s3://bucket/" + "x" * 900 for n in range(5_000)},
            "list": ["y" * 9_000] * 400,
        }
        assert table.hint(step(1, Phase.ENDED, **values))
        stored = table.read_run(*PLACE[:2]).steps[0].values
        assert "more characters]" in stored["reason"]
        assert "more" in stored["artifacts"]["…"]
        assert stored["list"][-1].startswith("… ")
        assert len(json.dumps(stored, ensure_ascii=False).encode()) < 400_000
        assert stored == as_stored(values)

    def test_what_cannot_be_cut_small_enough_is_left_out(self) -> None:
        deep = {f"k{n}": {f"m{m}": ["z" * 100] * 9 for m in range(9)} for n in range(9)}
        cut = fit({"state": "failed", "deep": {f"{n}": deep for n in range(9)}}, limit=2_000)
        assert cut == {"state": "failed"}

    def test_the_status_index_holds_what_is_worth_finding(self, moto_table: MirrorTable) -> None:
        table = made(moto_table)
        table.hint(run_item("shop", "bad", Version("q"), {"state": "failed", "time": "2"}))
        table.hint(run_item("shop", "good", Version("q"), {"state": "success", "time": "1"}))
        table.hint(step(1, Phase.ENDED, state="failed"))
        table.hint(attempt_item(*PLACE, at(1, Phase.ENDED), {"state": "failed"}))
        assert [item.run_id for item in table.of_status("RUN", "failed")] == ["bad"]
        assert [item.sk for item in table.of_status("STEP", "failed")] == ["STEP#plan#-1"]
        assert list(table.of_status("RUN", "success")) == []
        assert [item.run_id for item in table.runs("shop")] == ["bad", "good"]

    def test_every_page_is_read(self, moto_table: MirrorTable) -> None:
        table = made(moto_table)
        for number in range(1, 41):
            # 40 x 60 KB are more than one page, which holds 1 MB.
            values = {"lines": ["w" * 7_000] * 9}
            table.hint(attempt_item(*PLACE, at(number, Phase.ENDED), values))
        assert len(table.read_run(*PLACE[:2]).attempts) == 40


class TestTheTableItself:
    def test_in_aws_it_is_not_created(self, moto_table: MirrorTable) -> None:
        with pytest.raises(MirrorError, match="aws cloudformation deploy") as caught:
            moto_table.hint(step(1, Phase.RUNNING))
        assert "'mirror' does not exist at https://dynamodb.us-east-1" in str(caught.value)
        assert moto_table._client.list_tables()["TableNames"] == []

    def test_the_template_creates_the_same(self) -> None:
        text = Path(ROOT / "infra" / "mirror-table.yaml").read_text()
        made_of = yaml.safe_load(text)["Resources"]["MirrorTable"]["Properties"]
        assert {name: made_of[name] for name in TABLE} == TABLE
        assert made_of["TimeToLiveSpecification"] == {"AttributeName": "expires", "Enabled": True}

    @pytest.mark.integration
    @pytest.mark.usefixtures("aws")
    def test_a_stand_in_gets_it_on_first_use_by_whoever_is_first(self) -> None:
        tables = [MirrorTable("first-use") for _ in range(4)]
        results: list[Any] = []
        threads = [
            threading.Thread(target=lambda t=table: results.append(t.read_run("shop", "r").run))
            for table in tables
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert results == [None] * 4
        ttl = tables[0]._client.describe_time_to_live(TableName="first-use")
        assert ttl["TimeToLiveDescription"]["TimeToLiveStatus"] in ("ENABLED", "ENABLING")

    @pytest.mark.integration
    @pytest.mark.usefixtures("aws")
    def test_items_expire(self) -> None:
        table = MirrorTable("expiry")
        table.hint(step(1, Phase.RUNNING))
        (item,) = table._client.scan(TableName="expiry")["Items"]
        assert float(item["expires"]["N"]) > time.time() + 24 * 3600


@pytest.mark.integration
@pytest.mark.usefixtures("aws")
class TestConditions:
    def test_repeated_late_and_reordered_hints_change_nothing(self) -> None:
        table = MirrorTable("mirror")
        assert table.hint(step(2, Phase.ENDED, state="success"))
        for late in (at(2, Phase.ENDED), at(2, Phase.RUNNING), at(1, Phase.DECIDED)):
            assert not table.hint(step_item(*PLACE, late, {"state": "failed"}))
        assert table.read_run(*PLACE[:2]).steps[0].state == "success"
        assert table.hint(step(10, Phase.RUNNING, state="running"))

    def test_a_hint_replaces_the_whole_item(self) -> None:
        table = MirrorTable("mirror")
        table.hint(step(1, Phase.ENDED, state="up_for_retry", reason="no luck", cost=1.5))
        table.hint(step(2, Phase.RUNNING, state="running"))
        assert table.read_run(*PLACE[:2]).steps[0].values == {"state": "running"}

    def test_a_truth_replaces_only_what_it_saw(self) -> None:
        table = MirrorTable("mirror")
        table.hint(step(1, Phase.RUNNING, state="running"))
        (seen,) = table.read_run(*PLACE[:2]).steps
        assert table.settle(step(1, Phase.CLEARED, state=""), seen)
        assert not table.settle(step(1, Phase.SETTLED, state="failed"), seen)
        assert not table.settle(step(1, Phase.SETTLED, state="failed"), None)
        assert not table.hint(step(1, Phase.DECIDED, state="failed"))
        assert table.read_run(*PLACE[:2]).steps[0].state == ""

    def test_of_many_writers_at_once_the_newest_version_stays(self) -> None:
        table = MirrorTable("mirror")
        table.ensure_table()
        numbers = [n for n in range(1, 21) for _ in range(3)]
        barrier = threading.Barrier(6)

        def work(mine: list[int]) -> None:
            barrier.wait(10)
            for number in mine:
                table.hint(step(number, Phase.RUNNING, state=f"try {number}"))

        threads = [threading.Thread(target=work, args=(numbers[i::6][::-1],)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        (stored,) = table.read_run(*PLACE[:2]).steps
        assert stored.state == "try 20"
        assert stored.version == at(20, Phase.RUNNING)

    def test_of_many_truths_about_one_sight_one_is_stored(self) -> None:
        table = MirrorTable("mirror")
        table.hint(step(1, Phase.RUNNING, state="running"))
        (seen,) = table.read_run(*PLACE[:2]).steps
        stored: list[bool] = []
        threads = [
            threading.Thread(
                target=lambda n=n: stored.append(
                    table.settle(step(1, Phase.SETTLED, state=f"s{n}"), seen)
                )
            )
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(stored) == [False] * 7 + [True]


class TestADeadTable:
    def test_refused_connections_cost_little_and_then_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_endpoint(monkeypatch, f"http://127.0.0.1:{free_port()}")
        table = MirrorTable("mirror", patience=FOR_HINTS)
        table.warm()
        with pytest.raises(MirrorUnavailable, match="connection 'aws_default'"):
            table.hint(step(1, Phase.RUNNING))
        began = time.monotonic()
        for _ in range(50):
            assert not table.hint(step(1, Phase.RUNNING))
        assert time.monotonic() - began < 1

    def test_a_table_that_never_answers_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            use_endpoint(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
            table = MirrorTable("mirror", patience=FOR_HINTS)
            table.warm()
            began = time.monotonic()
            with pytest.raises(MirrorUnavailable):
                table.hint(step(1, Phase.RUNNING))
            assert time.monotonic() - began < 5

    def test_what_it_answers_is_told_as_such(self, moto_table: MirrorTable) -> None:
        table = made(moto_table)
        table._client.delete_table(TableName=table.name)
        table.patience = FOR_TRUTHS
        with pytest.raises(MirrorError) as caught:
            list(table.of_status("RUN", "failed"))
        assert not isinstance(caught.value, MirrorUnavailable)


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    connection = {"conn_type": "aws", "login": "k", "password": "s"}
    connection["extra"] = json.dumps({"region_name": "us-east-1", "endpoint_url": url})
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
