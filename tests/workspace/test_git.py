from __future__ import annotations

import time
from pathlib import Path

import pytest

from airflow_agent_provider.workspace.git import (
    Git,
    GitError,
    join_names,
    redact,
    run_git,
    split_names,
)

pytestmark = pytest.mark.integration


def test_an_error_names_the_command_and_gits_first_word_of_it(tmp_path: Path) -> None:
    with pytest.raises(GitError) as caught:
        Git(tmp_path).run("rev-parse", "HEAD")
    assert caught.value.reason.startswith("git rev-parse: fatal: not a git repository")
    assert "\n" not in caught.value.reason
    assert caught.value.returncode == 128


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    started = time.monotonic()
    alive = tmp_path / "alive"
    script = f"!trap '' TERM; (sleep 4; touch {alive}) & wait; sleep 60"
    with pytest.raises(GitError) as caught:
        run_git(["-c", f"alias.wait={script}", "wait"], cwd=tmp_path, timeout=0.5)
    assert caught.value.timed_out
    assert "did not end within 0.5 s" in caught.value.reason
    assert time.monotonic() - started < 30
    time.sleep(max(0.0, started + 4.5 - time.monotonic()))
    assert not alive.exists()


def test_git_gets_no_credential_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("AIRFLOW_CONN_GIT", "canary")
    monkeypatch.setenv("GIT_DIR", "/elsewhere")
    shown = run_git(["-c", "alias.show-env=!env", "show-env"], cwd=tmp_path).stdout.decode()
    assert "canary" not in shown
    assert "/elsewhere" not in shown


def test_the_users_configuration_has_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gitconfig").write_text('[alias]\n\tplanted = "!echo planted"\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(GitError, match="not a git command"):
        run_git(["planted"], cwd=tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(GitError, match=r"the folder .*/gone does not exist"):
        run_git(["status"], cwd=tmp_path / "gone")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unable to access 'https://ada:s3cret@git.example/x'", "https://***@git.example/x"),
        ("https://token@git.example/x.git/ not found", "https://***@git.example/x.git/ not found"),
        ("refused: tok-123 is no good", "refused: *** is no good"),
        ("git@git.example:x.git", "git@git.example:x.git"),
    ],
)
def test_credentials_are_redacted(text: str, expected: str) -> None:
    redacted = redact(text, {"AIRFLOW_GIT_TOKEN": "tok-123", "AIRFLOW_GIT_USER": "git"})
    assert expected in redacted
    assert "s3cret" not in redacted


def test_names_of_any_bytes_survive() -> None:
    names = ["plain", "with space", "two\nlines", b"\xff\xfe".decode(errors="surrogateescape")]
    assert split_names(join_names(names)) == names
