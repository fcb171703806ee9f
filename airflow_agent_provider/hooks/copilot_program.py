"""Finds Copilot's program on the worker, and unpacks its runtime once.

The SDK and the program are a pair of fixed versions. npm's package holds one large binary, which
unpacks itself when it first runs; what is unpacked has a smaller program, the runtime, which starts
twenty times as fast.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from airflow_agent_provider.agents.failures import AgentFailed, InvalidDefinition
from airflow_agent_provider.workspace.lock import file_lock

#: The version that the pinned SDK works with.
VERSION = "1.0.102"
_PACKAGE = f"@github/copilot@{VERSION}"
#: What the binary leaves behind once it has unpacked everything.
_DONE = ".extraction-complete"
#: Seconds for the binary to unpack itself, which takes about one.
_UNPACK_SECONDS = 120.0
_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True)
class Runtime:
    """Copilot's unpacked program.

    :param program: the executable that speaks the SDK's protocol.
    :param folder: the folder with everything that it needs.
    """

    program: Path
    folder: Path


def find_runtime(programs: Path, program: str | None = None) -> Runtime:
    """Return the runtime, unpacking it if nobody has done so yet.

    :param programs: the folder that ``[agents] programs`` names, an npm prefix.
    :param program: path of Copilot's binary, where it is not below ``programs``.
    :raises InvalidDefinition: if the program is missing, of another version, or cannot be unpacked;
        the reason has the command that mends it.
    """
    cache = programs / "copilot"
    runtime = _unpacked(cache) if program is None else None
    if runtime is not None:
        return runtime
    binary = _binary(programs) if program is None else _named(Path(program), programs)
    return _unpacked(cache) or _unpack(binary, cache)


def _install(programs: Path) -> str:
    return f"install it on the worker with: npm install --prefix {programs} {_PACKAGE}"


def _binary(programs: Path) -> Path:
    machine = _MACHINES.get(platform.machine().lower(), platform.machine())
    packages = programs / "node_modules" / "@github"
    for package in sorted(packages.glob(f"copilot-*-{machine}")):
        if (package / "copilot").is_file():
            return package / "copilot"
    raise InvalidDefinition(
        f"GitHub Copilot's program is missing below {programs}; {_install(programs)}"
    )


def _named(binary: Path, programs: Path) -> Path:
    if not binary.is_file():
        raise InvalidDefinition(
            f"the connection's extra 'program' names {binary}, which is no file; leave it out, and "
            f"{_install(programs)}"
        )
    return binary


def _unpacked(cache: Path) -> Runtime | None:
    # The binary's own layout, so that anybody can unpack it by hand.
    for mark in cache.glob(f"pkg/*/{VERSION}/{_DONE}"):
        for program in mark.parent.glob("prebuilds/*/copilot-runtime"):
            return Runtime(program, mark.parent)
    return None


def _unpack(binary: Path, cache: Path) -> Runtime:
    by_hand = f"COPILOT_CACHE_HOME={cache} {binary} --version"
    try:
        with file_lock(cache / ".lock", wait=_UNPACK_SECONDS, what="Copilot's runtime"):
            runtime = _unpacked(cache)
            if runtime is None:
                _unpack_into(binary, cache)
                runtime = _unpacked(cache)
    except OSError as error:
        raise InvalidDefinition(
            f"Copilot's runtime is not unpacked yet, and {cache} cannot be written; run once, as "
            f"the folder's owner: {by_hand}",
            raw=str(error),
        ) from error
    if runtime is None:
        raise InvalidDefinition(
            f"{binary} unpacked no runtime of version {VERSION}; {_install(cache.parent)}"
        )
    return runtime


def _unpack_into(binary: Path, cache: Path) -> None:
    """Run the binary once with a cache of its own, and move what it unpacked into place."""
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=cache))
    try:
        version = _run(binary, part)
        found = next(part.glob(f"pkg/*/{VERSION}/{_DONE}"), None)
        if found is None:
            raise InvalidDefinition(
                f"{binary} is not of the version {VERSION}, with which the installed SDK works; "
                f"{_install(cache.parent)}",
                raw=version,
            )
        place = cache / found.parent.relative_to(part)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            # Without its mark: somebody's attempt that was cut short.
            shutil.rmtree(place)
        found.parent.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _run(binary: Path, part: Path) -> str:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(part),
        "COPILOT_CACHE_HOME": str(part),
    }
    try:
        done = subprocess.run(
            [str(binary), "--version"],
            env=environment,
            cwd=part,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_UNPACK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AgentFailed(f"Copilot's program {binary} does not run", raw=str(error)) from error
    if done.returncode != 0:
        raise AgentFailed(
            f"Copilot's program {binary} ended with {done.returncode}",
            raw=(done.stderr or done.stdout).strip()[-2000:],
        )
    return done.stdout.strip()
