"""Child processes and their owner."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from airflow_agent_provider.rehearsal.processes import Ended, Processes

ENV = {"PATH": os.environ["PATH"]}


def test_both_streams_and_the_exit_status(tmp_path: Path) -> None:
    command = ["sh", "-c", "pwd; echo oops >&2; exit 3"]
    done = Processes().run(command, folder=tmp_path, env=ENV, timeout=20)
    assert (done.returncode, done.output) == (3, f"{tmp_path}\noops\n")


def test_a_program_gets_its_time_and_no_more(tmp_path: Path) -> None:
    done = Processes().run(["sleep", "600"], folder=tmp_path, env=ENV, timeout=0.1)
    assert done.returncode < 0
    assert "killed after 0.1 s" in done.output


def test_the_end_is_for_now_and_for_later(tmp_path: Path) -> None:
    processes = Processes()
    threading.Timer(0.2, processes.end).start()
    began = time.monotonic()
    with pytest.raises(Ended):
        processes.run(["sleep", "600"], folder=tmp_path, env=ENV, timeout=600)
    assert time.monotonic() - began < 60
    with pytest.raises(Ended):
        processes.run(["true"], folder=tmp_path, env=ENV, timeout=600)
