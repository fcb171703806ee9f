"""What every local agent's hook must do when its program or its model ends in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.agents.contract import Session
from tests.conformance.rigs import PROMPT, RIGS, LocalRig, git
from tests.conformance.test_agent_hooks import (
    DRIVER,
    EACH,
    LOCAL,
    WRITES,
    eventually,
    processes_that_name,
)

pytestmark = pytest.mark.integration


@pytest.fixture(params=LOCAL)
def local(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalRig]:
    made = RIGS[request.param](tmp_path, monkeypatch)
    assert isinstance(made, LocalRig)
    yield made
    made.close()


@pytest.fixture(params=EACH)
def each(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalRig]:
    """Return a rig of each local agent, for what does not depend on the model."""
    made = RIGS[request.param](tmp_path, monkeypatch)
    assert isinstance(made, LocalRig)
    yield made
    made.close()


def test_killed_in_mid_stream_it_resumes_in_another_process(local: LocalRig) -> None:
    server = local.rehearse(
        WRITES,
        {"fail": {"how": "silence", "times": 1}},
        {"write": {"path": "second.md", "content": "b\n"}},
        {"say": "Resumed."},
    )
    driver = [sys.executable, "-c", DRIVER, local.agent, str(local.workspace), str(local.home)]
    with subprocess.Popen(
        [*driver, PROMPT, json.dumps(local.options)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            eventually(lambda: "fail" in [action for _, action in local.plays(server)])
            # Programs write their session down a moment after they have sent a request.
            time.sleep(1)
        finally:
            os.kill(child.pid, signal.SIGKILL)
        lines = child.communicate(timeout=20)[0].splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    session = Session(local.agent, next(e["text"] for e in events if e["kind"] == "session"))
    eventually(lambda: not processes_that_name(str(local.folder)))

    attempt = local.attempt(session=session)

    assert attempt.done.message == "Resumed."
    assert attempt.done.session == session
    assert (local.workspace / "second.md").exists()
    # What was done before is not done again.
    assert local.plays(server).count((0, "write")) == 1


def test_a_rate_limit_names_the_seconds_to_wait(each: LocalRig) -> None:
    each.rehearse(
        WRITES,
        {"fail": {"status": 429, "message": "Slow down", "retry_after": 77, "times": None}},
    )
    failure = each.attempt().failure
    assert isinstance(failure, f.RateLimited), failure
    assert failure.retry_after == pytest.approx(77, abs=1)


def test_a_missing_program_says_how_to_install_it(
    each: LocalRig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    each.rehearse({"say": "x"})
    monkeypatch.setenv("AIRFLOW__AGENTS__PROGRAMS", str(tmp_path / "nothing"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    each.hide_program(monkeypatch)
    failure = each.attempt().failure
    assert isinstance(failure, f.InvalidDefinition), failure
    assert "install" in failure.reason


def test_a_program_that_is_killed_leaves_nothing(each: LocalRig) -> None:
    each.rehearse(
        {"run": "(setsid nohup sleep 307 >/dev/null 2>&1 &); touch running; sleep 307"},
        {"say": "Never."},
    )
    box: list[int] = []

    def kill() -> None:
        eventually((each.workspace / "running").exists)
        for line in processes_that_name(str(each.folder)):
            pid = int(line.partition(":")[0])
            if "bwrap" in line:
                box.append(pid)
        os.kill(min(box), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    attempt = each.attempt()
    killer.join()
    assert isinstance(attempt.failure, f.Interrupted), attempt.failure
    assert not processes_that_name(str(each.folder))
    assert git(each.workspace, "status", "--porcelain") == "?? running"
