"""What the box cannot hold back on this worker, in words for whoever runs it."""

from __future__ import annotations

import os
import uuid

from airflow_agent_provider.sandbox.cgroups import make_cgroup
from airflow_agent_provider.sandbox.syscalls import known_machine

_DELEGATE = (
    "give its service cgroups of its own (systemd: `Delegate=yes`; in a container, /sys/fs/cgroup "
    "mounted writable)"
)


def weaknesses() -> list[str]:
    """Return what a box of this worker does not limit, each with what mends it; empty if all is.

    Whether there can be a box at all is another question: see
    :func:`~airflow_agent_provider.sandbox.box.works`.
    """
    trial = make_cgroup(uuid.uuid4().hex, processes=64, memory=1024**3)
    trial.close()
    found = []
    root = os.geteuid() == 0
    if root and "pids" not in trial.kinds:
        found.append(
            "how many processes an agent starts is looked at once a second and not limited, since "
            f"the worker is root: run it as an ordinary user, or {_DELEGATE}"
        )
    if "memory" not in trial.kinds:
        found.append(
            "the memory of each of an agent's processes is limited, but that of all together is "
            f"only looked at once a second: {_DELEGATE}"
        )
    if root:
        found.append(
            "what agents leave in their workspaces belongs to root: run the worker as an ordinary "
            "user"
        )
    if not known_machine():
        found.append(
            f"system calls are not filtered on {os.uname().machine}, so an agent can read the "
            "kernel's keyring of the worker: keep no secret there"
        )
    return found
