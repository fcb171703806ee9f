"""Whether a box with just these bounds works on this worker, tried before an agent is started."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.sandbox.bounds import Bounds, arguments
from airflow_agent_provider.sandbox.syscalls import call_filter

#: Seconds for the trial, which takes some milliseconds.
_SECONDS = 30.0
_OK = "box-ok"
#: Few processes, nothing of the system writable (``>>``: ``>`` would empty what it may write).
_TRIAL = (
    'test "$(ls -d /proc/[0-9]* | wc -l)" -le 6'
    " && ! (: >>/etc/x) 2>/dev/null"
    " && ! (: >>/proc/sys/kernel/core_pattern) 2>/dev/null"
    f" && : >/tmp/probe && echo {_OK}"
)
_NAMESPACES = (
    "allow user namespaces for the worker: in a container by its seccomp and AppArmor profiles, on "
    "a machine by `sysctl -w kernel.unprivileged_userns_clone=1`"
)
#: bubblewrap's words, and what mends what they tell.
_CAUSES = (
    ("No permissions to create new namespace", _NAMESPACES),
    ("Creating new namespace failed", "raise `sysctl user.max_user_namespaces`, or leave the box "
     "that the worker itself runs in"),
    ("Failed to make / slave", "let the container mount (its AppArmor profile forbids it)"),
    ("pivot_root", "let the container pivot_root (its seccomp profile forbids it)"),
    ("Can't mount proc", "unmask /proc in the container (Docker: `--security-opt "
     "systempaths=unconfined`)"),
    ("PR_SET_SECCOMP", "use a kernel with seccomp filters (CONFIG_SECCOMP_FILTER)"),
    ("setting up uid map", "give the worker's user SETFCAP, or run it as an ordinary user"),
)  # fmt: skip


def check(program: str, bounds: Bounds) -> None:
    """Try ``bounds`` on this worker.

    :param program: path of bubblewrap.
    :param bounds: the session's own.
    :raises InvalidDefinition: if the box does not work; the reason says what mends it.
    """
    trial = replace(bounds, folder=Path("/tmp"))
    calls = os.memfd_create("filter")
    try:
        os.write(calls, call_filter())
        os.lseek(calls, 0, os.SEEK_SET)
        command = [program, *arguments(trial), "--seccomp", str(calls), "--"]
        done = subprocess.run(
            [*command, "/bin/sh", "-c", _TRIAL],
            pass_fds=(calls,),
            env={"PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failure(str(error)) from error
    finally:
        os.close(calls)
    if done.stdout.strip() != _OK:
        raise _failure(done.stderr.strip() or f"the trial ended with {done.returncode}")


def _failure(words: str) -> InvalidDefinition:
    mend = next((mend for told, mend in _CAUSES if told in words), _NAMESPACES)
    return InvalidDefinition(
        f"the sandbox does not work on this worker; {mend}; or, on workers that are throw-away "
        "containers, set [agents] sandbox = off",
        raw=words[-2000:],
    )
