"""An agent's processes: what they inherit, and that none is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from airflow_agent_provider.agents.processes import INHERITED, MARK, clean_command, end_marked

pytestmark = pytest.mark.integration

_SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


def test_a_program_inherits_only_what_is_named() -> None:
    command = [*clean_command(Path(sys.executable), ["KEPT", "ABSENT"]), "-c", _SHOW]
    shown = subprocess.run(
        command,
        env={**os.environ, "KEPT": "a value, with a comma", "CANARY": "secret"},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    variables = json.loads(shown.stdout)
    assert variables["KEPT"] == "a value, with a comma"
    # Python itself sets LC_CTYPE in a bare environment.
    assert set(variables) <= {"KEPT", "LC_CTYPE"}
    assert not any("secret" in part for part in command)


def test_nothing_of_airflow_or_a_cloud_is_inherited() -> None:
    assert not [name for name in INHERITED if name.startswith(("AIRFLOW", "AWS", "PYTHON"))]


def test_the_program_replaces_its_launcher() -> None:
    command = [*clean_command(Path(sys.executable), ["PATH"]), "-c", "import time; time.sleep(30)"]
    child = subprocess.Popen(command)
    try:
        # In the middle of an exec the command line is empty.
        _eventually(lambda: "launcher.py" not in (_read(child.pid, "cmdline") or "launcher.py"))
        assert "time.sleep(30)" in _read(child.pid, "cmdline")
    finally:
        child.kill()
        child.wait(timeout=10)


def test_end_marked_finds_children_in_other_sessions_and_spares_the_rest() -> None:
    mark, other = uuid.uuid4().hex, uuid.uuid4().hex
    started = [
        _start(mark, "sleep 60 & wait"),
        _start(mark, "(setsid sleep 60 >/dev/null 2>&1 &) ; trap '' TERM HUP; sleep 60"),
        _start(other, "exec sleep 60"),
    ]
    try:
        _eventually(lambda: len(_marked(mark)) == 5)
        assert end_marked(mark)
        assert _marked(mark) == []
        assert started[2].poll() is None
        assert end_marked(mark)
    finally:
        end_marked(other)
        for child in started:
            child.wait(timeout=10)


def _start(mark: str, command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", command], env={**os.environ, MARK: mark}, start_new_session=True
    )


def _marked(mark: str) -> list[str]:
    return [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and f"{MARK}={mark}" in _read(int(entry.name), "environ")
    ]


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _eventually(holds: object) -> None:
    end = time.monotonic() + 20
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)
