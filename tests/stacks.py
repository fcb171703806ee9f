"""The AWS stand-in that tests use: one ministack per test process, one account per test."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def aws_connection(endpoint: str, **config: float) -> str:
    """Return an Airflow connection to a stand-in, as JSON, with an account of its own.

    :param config: of botocore, such as ``read_timeout``.
    """
    return json.dumps(
        {
            "conn_type": "aws",
            "login": f"{random.randrange(10**11, 10**12)}",
            "password": "test",
            "extra": {
                "endpoint_url": endpoint,
                "region_name": "us-east-1",
                "config_kwargs": config,
            },
        }
    )


def _program() -> str:
    told = os.environ.get("AGENTS_TEST_MINISTACK")
    found = told or shutil.which("ministack") or str(ROOT / ".ministack" / "bin" / "ministack")
    if not Path(found).exists():
        pytest.fail(f"{found} is missing: run make setup, or set AGENTS_TEST_MINISTACK")
    return found


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run ministack; return its URL."""
    port = free_port()
    folder = tmp_path_factory.mktemp("ministack")
    environment = {
        **os.environ,
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
    }
    environment.pop("PYTHONPATH", None)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [_program()], env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait(f"http://127.0.0.1:{port}/_ministack/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            pytest.fail(f"ministack ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail("ministack did not answer within 30 s")


@pytest.fixture
def aws(ministack: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lead the connection ``aws_default`` to a fresh account of ministack; return its URL."""
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", aws_connection(ministack))
    return ministack
