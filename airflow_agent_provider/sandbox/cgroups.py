"""Bounds on all processes of a box together, where the worker may make cgroups.

The kernel's other limits do not reach that far: that on processes does not hold for root, and that
on memory is each process's own. Ordinary users may seldom make cgroups; then there are none.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: What the folders of ours are called.
_PREFIX = "agent-box-"
#: Seconds after which the folder of a worker that was killed is nobody's any more.
_LEFT_OVER = 86400.0
#: Seconds for the kernel to see the last process go.
_END_SECONDS = 2.0
_POLL = 0.02

_SELF = Path("/proc/self/cgroup")
_MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Cgroup:
    """The cgroups of one box, one for each kind of bound, or one for all.

    :param folders: where they are.
    :param kinds: the bounds that hold: ``pids``, ``memory``.
    """

    folders: tuple[Path, ...] = ()
    kinds: frozenset[str] = frozenset()

    @property
    def entrances(self) -> list[str]:
        """The files into which a process writes 0 to come under the bounds."""
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def close(self) -> None:
        """Remove them, once the box's processes are gone; harmless a second time."""
        end = time.monotonic() + _END_SECONDS
        for folder in self.folders:
            while not _removed(folder) and time.monotonic() < end:
                time.sleep(_POLL)


def make_cgroup(name: str, processes: int, memory: int) -> Cgroup:
    """Return cgroups with these bounds; those that this worker may not make are left out.

    :param name: names them.
    :param processes: how many processes and threads there may be.
    :param memory: bytes of memory that they may have together.
    """
    folders: list[Path] = []
    kinds: set[str] = set()
    for kind, parents in _parents().items():
        if kind in kinds:
            continue
        bounds = _bounds(kind, processes, memory)
        for parent in parents:
            if folder := _made(parent / f"{_PREFIX}{name}", bounds):
                folders.append(folder)
                kinds |= {"pids", "memory"} if kind == "all" else {kind}
                break
    return Cgroup(tuple(folders), frozenset(kinds))


def _bounds(kind: str, processes: int, memory: int) -> Mapping[str, int]:
    return {
        "all": {"pids.max": processes, "memory.max": memory},
        "pids": {"pids.max": processes},
        "memory": {"memory.limit_in_bytes": memory},
    }[kind]


def _made(folder: Path, bounds: Mapping[str, int]) -> Path | None:
    try:
        _sweep(folder.parent)
        folder.mkdir()
    except OSError:
        return None
    try:
        for name, value in bounds.items():
            # Not write_text, which would make a plain file where there is no such bound.
            with (folder / name).open("r+") as file:
                file.write(str(value))
        # Whoever may not put a process in gets no further.
        with (folder / "cgroup.procs").open("r+"):
            return folder
    except OSError:
        _removed(folder)
        return None


def _sweep(parent: Path) -> None:
    for left in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_OVER:
                left.rmdir()


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _parents() -> dict[str, list[Path]]:
    """Return where cgroups of a kind may be made: below this process's own, or beside it."""
    own = dict(_own_groups())
    found: dict[str, list[Path]] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in _MOUNTS.read_text().splitlines():
            # https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
            fields, _, rest = line.partition(" - ")
            root, mount = fields.split(" ")[3:5]
            system, _, options = rest.split(" ")[:3]
            for kind in _kinds(system, options.split(",")):
                path = own.get("" if kind == "all" else kind)
                if path is not None:
                    found[kind] = _candidates(Path(mount), os.path.relpath(path, root))
    return found


def _candidates(mount: Path, relative: str) -> list[Path]:
    if relative.startswith(".."):
        return []
    own = mount / relative
    # Version 2 bounds no group that has processes of its own, so there it is the parent's child.
    return [own] if own == mount else [own, own.parent]


def _kinds(system: str, options: list[str]) -> list[str]:
    if system == "cgroup2":
        return ["all"]
    return [kind for kind in ("pids", "memory") if system == "cgroup" and kind in options]


def _own_groups() -> Iterator[tuple[str, str]]:
    with contextlib.suppress(OSError, ValueError):
        for line in _SELF.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            for kind in kinds.split(","):
                yield kind, path
