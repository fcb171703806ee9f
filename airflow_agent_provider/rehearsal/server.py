"""The rehearsal's servers as one program, which plays a script until it is told to end."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from airflow_agent_provider.rehearsal.cursor_server import CursorServer, RateLimit
from airflow_agent_provider.rehearsal.model_server import ModelServer
from airflow_agent_provider.rehearsal.script import Script, ScriptError, load_script


class _StandIn(Protocol):
    @property
    def url(self) -> str: ...

    def start(self) -> object: ...

    def stop(self) -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the servers, write their URLs, and end them on SIGINT or SIGTERM.

    :param arguments: the command line; the process's own where None.
    :returns: the exit code: 0 after a signal, 1 if a server cannot start, 2 for a bad script.
    """
    options = _parse(arguments)
    try:
        script = load_script(options.script)
    except ScriptError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    told = _signals()
    with contextlib.ExitStack() as stack:
        try:
            urls = {}
            for name, server in _stand_ins(script, options).items():
                server.start()
                stack.callback(server.stop)
                urls[name] = server.url
        except OSError as error:
            sys.stderr.write(f"a rehearsal server cannot listen: {error}\n")
            return 1
        if options.port_file is not None:
            stack.callback(options.port_file.unlink, missing_ok=True)
            _write_atomically(options.port_file, json.dumps(urls))
        for name, url in urls.items():
            sys.stdout.write(f"{name}: {url}\n")
        sys.stdout.flush()
        told.wait()
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_agent_provider.rehearsal",
        description="Play a rehearsal script in place of the agents' vendors, on loopback.",
    )
    parser.add_argument("--script", type=Path, required=True, help="the rehearsal script, YAML")
    parser.add_argument("--model-port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--cursor-port", type=int, default=0, help="0 takes a free port")
    parser.add_argument(
        "--cursor-requests-per-minute",
        type=int,
        help="refuse more requests of a key, as Cursor does; without it everything is granted",
    )
    parser.add_argument(
        "--port-file", type=Path, help="JSON file for the URLs, there once all servers answer"
    )
    return parser.parse_args(arguments)


def _signals() -> threading.Event:
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    return told


def _stand_ins(script: Script, options: argparse.Namespace) -> dict[str, _StandIn]:
    rate = options.cursor_requests_per_minute
    limit = None if rate is None else RateLimit(rate)
    return {
        "model": ModelServer(script, port=options.model_port),
        "cursor": CursorServer(script, port=options.cursor_port, limit=limit),
    }


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)
