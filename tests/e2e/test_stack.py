"""A running stack's environment: its own settings, and nothing of the user's."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from infra.local.stack import Stack
from tests.e2e.live import Live

pytestmark = pytest.mark.integration


def test_the_users_settings_and_keys_stay_outside(
    live_airflow: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = {
        "AIRFLOW_CONFIG": "/home/ada/airflow.cfg",
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW_CONN_PRODUCTION": "aws://",
        "AWS_PROFILE": "production",
        "OPENAI_API_KEY": "sk-real",
        "HTTPS_PROXY": "http://proxy.example.org:3128",
    }
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)

    env = live_airflow.stack.env

    assert env["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert set(env) & set(foreign) == {"AIRFLOW__CORE__EXECUTOR", "HTTPS_PROXY"}
    assert "127.0.0.1" in env["NO_PROXY"].split(",")


def test_the_env_file_is_the_owners_alone_and_leads_a_shell_to_this_airflow(
    live_airflow: Live,
) -> None:
    stack: Stack = live_airflow.stack
    file = stack.folder / "env"

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    printed = subprocess.run(
        ["sh", "-c", f". {file} && echo $AIRFLOW_HOME && echo $AIRFLOW_CONN_AIRFLOW_API"],
        env={"PATH": os.environ["PATH"]},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()

    assert Path(printed[0]) == stack.folder / "airflow"
    assert json.loads(printed[1])["host"] == stack.url
    assert stack.password not in (stack.folder / "logs" / "airflow.log").read_text()


def test_every_key_is_its_own(live_airflow: Live) -> None:
    texts = [value for name, value in live_airflow.stack.env.items() if "_CONN_" in name]

    passwords = [json.loads(text)["password"] for text in texts]

    assert len(set(passwords)) == len(passwords) >= 4
