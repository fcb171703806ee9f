"""Removes workspaces, whatever an agent left in them."""

from __future__ import annotations

import contextlib
import errno
import shutil
import uuid
from pathlib import Path

from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.agents.identity import StepKey

_DISCARDED = ".discarded-"


def step_folder(root: Path, step: StepKey) -> Path:
    """Return the folder of a step's workspace, the same on every worker.

    :param root: the worker's folder of workspaces.
    :raises InvalidDefinition: if the step's ids are no folder names.
    """
    return _below(root, step.prefix)


def remove_step(root: Path, step: StepKey) -> None:
    """Remove the workspace of a step; harmless if there is none."""
    remove_tree(step_folder(root, step))


def remove_run(root: Path, step: StepKey) -> None:
    """Remove the workspaces of all steps of the run that ``step`` belongs to."""
    remove_tree(_below(root, step.run_prefix))


def remove_tree(path: Path) -> None:
    """Remove a file, link or folder without following any link; harmless if there is none.

    Folders whose permissions forbid it, as package caches make them, are removed too, and those
    that lie in each other deeper than a path can say.
    """
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        try:
            shutil.rmtree(path)
        except (PermissionError, RecursionError):
            _flatten(path)
            path.rmdir()


def discard(path: Path) -> None:
    """Remove ``path`` so that whoever still works in it does not see what comes in its place.

    Left-overs of an earlier discard that was killed go too.
    """
    with contextlib.suppress(FileNotFoundError):
        path.rename(path.with_name(f"{_DISCARDED}{uuid.uuid4().hex}"))
    for left in path.parent.glob(f"{_DISCARDED}*"):
        try:
            remove_tree(left)
        except OSError as error:
            # Somebody still writes there; the next discard finds it quiet.
            if error.errno != errno.ENOTEMPTY:
                raise


def _below(root: Path, prefix: str) -> Path:
    # Airflow's ids may consist of dots alone.
    if any(part in ("", ".", "..") for part in prefix.split("/")):
        raise InvalidDefinition(f"{prefix!r} cannot name a folder: an id consists of dots alone")
    return root.absolute() / prefix


def _flatten(root: Path) -> None:
    """Remove what is in ``root``, which may be deeper than a path can say or be read-only.

    What a folder holds is moved up into ``root`` first, so that nothing lies deeper than that.
    """
    root.chmod(0o700)
    pending = [child.name for child in root.iterdir()]
    while pending:
        child = root / pending.pop()
        if child.is_symlink() or not child.is_dir():
            child.unlink()
            continue
        child.chmod(0o700)
        for inner in child.iterdir():
            name = uuid.uuid4().hex
            _give_way(inner)
            inner.rename(root / name)
            pending.append(name)
        child.rmdir()


def _give_way(path: Path) -> None:
    # To move a folder is to write into it, as its ".." changes.
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o700)
