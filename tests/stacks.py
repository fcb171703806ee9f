"""Stand-ins for what lies outside: AWS, and a git server. Real programs, each on a free port."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parent.parent
_START_TIMEOUT = 60.0
_END_TIMEOUT = 10.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Aws:
    """A running AWS stand-in.

    :param endpoint: its URL.
    :param account: access key of twelve digits: each is an account of its own.
    """

    endpoint: str
    account: str

    @property
    def environment(self) -> dict[str, str]:
        """What AWS's own clients take from the environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.account,
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "eu-central-1",
        }

    def client(self, service: str) -> Any:
        """Return a boto3 client of the service."""
        import boto3

        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.account,
            aws_secret_access_key="test",
            region_name="eu-central-1",
        )


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """The AWS stand-in, in a virtual environment of its own, since it pins botocore."""
    program = Path(
        os.environ.get("AGENTS_TEST_MINISTACK") or _ROOT / ".ministack" / "bin" / "ministack"
    )
    if not program.exists():
        pytest.fail(
            f"{program} does not exist; run `make .ministack`, or set AGENTS_TEST_MINISTACK to the "
            f"ministack program of a virtual environment of its own"
        )
    folder = tmp_path_factory.mktemp("ministack")
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "STATE_DIR": str(folder / "state"),
        "S3_DATA_DIR": str(folder / "s3"),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program], cwd=folder, env=environment, stdout=log, stderr=log,
            preexec_fn=_die_with_parent,
        )  # fmt: skip
    try:
        endpoint = f"http://127.0.0.1:{port}"
        _await(endpoint, process, folder / "log")
        yield Aws(endpoint, str(uuid.uuid4().int % 10**12).rjust(12, "1"))
    finally:
        process.terminate()
        try:
            process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def s3_bucket(ministack: Aws) -> str:
    """A new bucket."""
    name = f"agents-{uuid.uuid4().hex}"
    ministack.client("s3").create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    return name


def free_port() -> int:
    """Return a port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _await(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(endpoint, timeout=2):
            return
        time.sleep(0.1)
    pytest.fail(f"{endpoint} did not start:\n{log.read_text()}")


class GitServer:
    """Serves bare repositories over HTTP, by git's own ``http-backend``."""

    def __init__(self) -> None:
        self._repositories: dict[str, tuple[Path, bool, str]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self)

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def serve(self, path: Path, *, writable: bool = True, login: str = "") -> None:
        """Serve the bare repository ``path`` by its folder's name.

        :param login: ``user:password`` that is asked for; none where empty.
        """
        self._repositories[path.name] = (path, writable, login)

    def url(self, name: str) -> str:
        """Return the URL of a repository."""
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_END_TIMEOUT)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        name = path.split("/")[1]
        folder, writable, login = self._repositories.get(name, (Path(), False, ""))
        given = request.headers.get("Authorization", "")
        if not folder.name:
            request.send_error(404)
        elif login and given != f"Basic {base64.b64encode(login.encode()).decode()}":
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="git"')
            request.send_header("Content-Length", "0")
            request.end_headers()
        elif "git-receive-pack" in request.path and not writable:
            request.send_error(403)
        else:
            self._run_backend(request, folder.parent, path, query)

    def _run_backend(
        self, request: BaseHTTPRequestHandler, root: Path, path: str, query: str
    ) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.receivepack",
            "GIT_CONFIG_VALUE_0": "true",
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": request.command,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "REMOTE_USER": "test",
            "REMOTE_ADDR": "127.0.0.1",
        }
        done = subprocess.run(
            ["git", "http-backend"], input=body, env=environment, capture_output=True, check=True
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        request.send_response(int(headers.pop("Status", "200 OK").split()[0]))
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


@pytest.fixture
def git_server() -> Iterator[GitServer]:
    """A git server over HTTP that serves nothing yet."""
    server = GitServer()
    yield server
    server.close()
