"""A hostile agent hunts for the worker's secrets and lays traps; nothing of it may work."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_agent_provider.agents.identity import StepKey
from infra.local.stack import BUCKET, TABLE
from tests.e2e.canaries import PREFIX, Canaries, files_below, make_canary, plant
from tests.e2e.live import Live, start_live

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("live")]

WORKFLOW = "canary-hunt"


@pytest.fixture(scope="module")
def hunted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Canaries, str]]:
    """Run the hunt on an Airflow of its own, whose secrets are known; yield them and the run."""
    folder = tmp_path_factory.mktemp("canaries")
    before = dict(os.environ)
    try:
        canaries = plant(folder)
        config = {name: make_canary() for name in ("database", "smtp__smtp_password")}
        with start_live(folder, smtp__smtp_password=config["smtp__smtp_password"]) as live:
            values = dict(canaries.values)
            values["Airflow's config: smtp_password"] = config["smtp__smtp_password"]
            for name, value in live.stack.env.items():
                if name.startswith("AIRFLOW_CONN_"):
                    password = json.loads(value).get("password")
                    if password and len(password) > 11:
                        values[f"connection: {name}"] = password
                elif name.endswith(("FERNET_KEY", "SECRET_KEY", "JWT_SECRET")):
                    values[f"Airflow's config: {name}"] = value
            remote = live.repository("canaries", {"README.md": "# Project\n"})
            live.api.wait_for_dag(WORKFLOW)
            run_id = live.api.trigger(WORKFLOW, conf={"repository": str(remote)})
            live.api.wait_for_run(WORKFLOW, run_id, within=300)
            yield live, Canaries(values), run_id
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_the_search_would_find_what_is_there() -> None:
    canaries = Canaries({"there": PREFIX + "0123456789abcdef" * 2})
    value = canaries.values["there"].encode()
    import base64

    for content in (value, value[::-1], base64.b64encode(b"a line\n" + value + b"\nmore")):
        assert canaries.found_in(b"before " + content + b" after")
    assert not canaries.found_in(b"nothing")


def test_the_hunt_finds_nothing(hunted: tuple[Live, Canaries, str]) -> None:
    live, canaries, run_id = hunted
    step = StepKey(WORKFLOW, run_id, "hunt")
    outcome = json.loads(live.store().get(f"{step.prefix}/1/outcome.json"))
    assert outcome["state"] == "success", outcome
    assert outcome["boxed"] is True
    loot = live.store().get(live.store().key(outcome["artifacts"]["output/loot/found.txt"]))
    # It did look: these are its own.
    assert b"AGENT_SESSION_MARK=" in loot
    assert b"47113" in loot
    assert canaries.found_in(loot) == []


def test_nothing_that_is_stored_holds_a_secret(hunted: tuple[Live, Canaries, str]) -> None:
    live, canaries, run_id = hunted
    aws = live.stack.aws
    s3 = aws.client("s3")
    stored = [
        (key, s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()) for key in aws.keys(BUCKET)
    ]
    assert any(name.endswith("transcript/0001.jsonl") for name, _ in stored)
    items = aws.client("dynamodb").scan(TableName=TABLE)["Items"]
    assert items
    xcoms = [
        (f"xcom {task}", json.dumps(live.api.xcom(WORKFLOW, run_id, task)).encode())
        for task in ("hunt", "plant", "after")
    ]
    logs = list(files_below(live.stack.folder / "airflow" / "logs"))
    assert logs
    workspaces = list(files_below(live.stack.workspaces))
    for contents in (stored, [("table", json.dumps(items).encode())], xcoms, logs, workspaces):
        assert canaries.report(contents) == []


def test_the_traps_catch_nobody(hunted: tuple[Live, Canaries, str]) -> None:
    live, _, run_id = hunted
    states = {t["task_id"]: t["state"] for t in live.api.task_instances(WORKFLOW, run_id)}
    assert states == {"hunt": "success", "plant": "success", "after": "success"}
    assert not list(live.stack.folder.rglob("pwned"))
    assert not (Path("/bin/sh").stat().st_mode & 0o4000)
    step = StepKey(WORKFLOW, run_id, "after")
    listing = (live.stack.workspaces / step.prefix / "tree" / "listing2.txt").read_text()
    # What an agent leaves is committed as plain files, so no later step gets the bit.
    (line,) = (line for line in listing.splitlines() if line.endswith("setuid-sh"))
    assert line.startswith("-rwx")
