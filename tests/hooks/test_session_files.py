"""What is seen of a session's files while its program writes them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from airflow_agent_provider.hooks import session_files
from airflow_agent_provider.hooks.codex_session import _has_output
from airflow_agent_provider.hooks.session_files import in_one_line, settled


def test_words_count_only_in_one_line() -> None:
    look = in_one_line('"call_1"', '"result"')
    assert look(b'{"result": 1, "id": "call_1"}')
    assert look(b'{"id": "call_1", "result": 1}\n{"id": "call_1"}\n')
    assert not look(b'{"id": "call_1"}\n{"result": 1, "id": "call_2"}\n')
    assert not look(b'{"id": "call_11", "result": 1}')
    assert not look(b"")


def test_what_is_written_later_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "session.jsonl"
    writer = threading.Timer(0.3, lambda: file.write_text('{"id": "call_1", "result": 1}\n'))
    writer.start()
    assert settled(lambda: tmp_path.glob("*.jsonl"), in_one_line("call_1", "result"))
    assert file.exists()
    writer.join()


def test_what_is_never_written_is_waited_for_in_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_files, "_SETTLE_SECONDS", 0.1)
    secret = tmp_path / "secret"
    secret.write_text("call_1 result")
    (tmp_path / "a.jsonl").symlink_to(secret)
    os.mkfifo(tmp_path / "b.jsonl")
    assert not settled(lambda: tmp_path.glob("*.jsonl"), in_one_line("call_1", "result"))


def test_codex_tells_the_model_of_a_script_s_calls_by_the_script_s_output() -> None:
    ended = b'{"type":"item_completed","item":{"id":"exec-1"}}\n'
    output = b'{"type":"custom_tool_call_output","call_id":"call_1"}\n'
    assert not _has_output(output + ended, "exec-1")
    assert _has_output(output + ended + output, "exec-1")
    assert _has_output(output, "call_1")
    assert not _has_output(b'{"type":"function_call","call_id":"call_1"}\n', "call_1")
    # Another call's output, while this one still runs.
    assert not _has_output(b'{"type":"function_call","call_id":"call_2"}\n' + output, "call_2")
