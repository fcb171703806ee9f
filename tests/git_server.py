"""A git server: git's own ``http-backend`` behind a small HTTP server, on a free port."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_END_TIMEOUT = 10.0


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
