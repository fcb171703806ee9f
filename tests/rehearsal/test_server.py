"""The rehearsal as a program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from airflow_agent_provider.rehearsal.server import main

SCRIPT = "steps: {'*': [{say: hello}]}\n"


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "script.yaml").write_text(SCRIPT)
    ports = tmp_path / "ports.json"
    command = [sys.executable, "-m", "airflow_agent_provider.rehearsal"]
    child = subprocess.Popen(
        [*command, "--script", tmp_path / "script.yaml", "--port-file", ports],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 30
        while not ports.exists():
            assert child.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        urls = json.loads(ports.read_text())
        answer = httpx.get(f"{urls['model']}/v1/models", headers={"Authorization": "Bearer k"})
        assert answer.status_code == 200
        assert httpx.get(f"{urls['cursor']}/_rehearsal/requests").status_code == 200
        child.send_signal(number)
        output, _ = child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait(timeout=10)
    assert child.returncode == 0
    assert f"model: {urls['model']}" in output
    assert not ports.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: {plan: [{tell: x}]}", "steps.plan.0"),
        ("steps: [", "is not YAML"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_script_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str
) -> None:
    script = tmp_path / "script.yaml"
    if text is not None:
        script.write_text(text)
    assert main(["--script", str(script)]) == 2
    error = capsys.readouterr().err
    assert str(script) in error
    assert words in error
    assert "Traceback" not in error
