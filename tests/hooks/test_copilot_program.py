"""Finding and unpacking Copilot's program, with the real one and with what pretends to be it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import threading
from pathlib import Path

import pytest

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.hooks import copilot_program
from airflow_agent_provider.hooks.copilot_program import VERSION, Runtime, find_runtime

ROOT = Path(__file__).parents[2]
REAL = ROOT / ".programs"


def fake(folder: Path, *, version: str = VERSION, code: int = 0, before: str = "") -> Path:
    """Write a program that unpacks itself as Copilot's does, and counts how often; return it."""
    place = f"$COPILOT_CACHE_HOME/pkg/linux-x64/{version}"
    program = folder / "copilot"
    folder.mkdir(parents=True, exist_ok=True)
    program.write_text(
        f"#!/bin/sh\n{before}\necho x >> {folder}/runs\n"
        f"mkdir -p {place}/prebuilds/linux-x64\n"
        f"touch {place}/prebuilds/linux-x64/copilot-runtime {place}/.extraction-complete\n"
        f"echo 'GitHub Copilot CLI {version}.'\nexit {code}\n"
    )
    program.chmod(0o755)
    return program


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


def test_the_versions_are_those_of_the_sdk_and_of_the_setup() -> None:
    from copilot._cli_version import CLI_VERSION

    assert CLI_VERSION == VERSION
    assert f"@github/copilot@{VERSION}" in (ROOT / "infra/setup-programs.sh").read_text()


@pytest.mark.integration
def test_the_real_one_is_unpacked_once(tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(REAL / "node_modules")
    runtime = find_runtime(tmp_path)
    assert os.access(runtime.program, os.X_OK)
    assert runtime.program.is_relative_to(runtime.folder)
    assert runtime.folder.parent.parent == tmp_path / "copilot" / "pkg"
    made = runtime.program.stat().st_mtime_ns, runtime.folder.stat().st_ino
    assert find_runtime(tmp_path) == runtime
    assert made == (runtime.program.stat().st_mtime_ns, runtime.folder.stat().st_ino)
    assert sorted(path.name for path in (tmp_path / "copilot").iterdir()) == [".lock", "pkg"]


def test_many_at_once_unpack_once(tmp_path: Path) -> None:
    program = fake(tmp_path / "bin", before="sleep 0.2")
    found: list[Runtime] = []
    threads = [
        threading.Thread(target=lambda: found.append(find_runtime(tmp_path, str(program))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert runs(tmp_path / "bin") == 1


def test_what_was_cut_short_is_unpacked_again(tmp_path: Path) -> None:
    program = fake(tmp_path / "bin")
    runtime = find_runtime(tmp_path, str(program))
    (runtime.folder / ".extraction-complete").unlink()
    (runtime.folder / "rest").touch()
    assert find_runtime(tmp_path, str(program)) == runtime
    assert runs(tmp_path / "bin") == 2
    assert not (runtime.folder / "rest").exists()


def test_the_command_that_mends_a_missing_program(tmp_path: Path) -> None:
    for program in (None, str(tmp_path / "nowhere" / "copilot")):
        with pytest.raises(f.InvalidDefinition) as caught:
            find_runtime(tmp_path, program)
        command = f"npm install --prefix {tmp_path} @github/copilot@{VERSION}"
        assert command in caught.value.reason
        assert program is None or program in caught.value.reason


def test_another_version_is_refused(tmp_path: Path) -> None:
    program = fake(tmp_path / "bin", version="1.0.1")
    with pytest.raises(f.InvalidDefinition) as caught:
        find_runtime(tmp_path, str(program))
    assert VERSION in caught.value.reason
    assert caught.value.raw == "GitHub Copilot CLI 1.0.1."
    assert [path.name for path in (tmp_path / "copilot").iterdir()] == [".lock"]


def test_a_program_that_fails(tmp_path: Path) -> None:
    program = fake(tmp_path / "bin", code=3)
    with pytest.raises(f.AgentFailed, match="ended with 3"):
        find_runtime(tmp_path, str(program))
    program.chmod(stat.S_IRUSR)
    with pytest.raises(f.AgentFailed, match="does not run"):
        find_runtime(tmp_path, str(program))


def test_a_folder_that_cannot_be_written_tells_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = fake(tmp_path / "bin")
    programs = tmp_path / "programs"
    programs.mkdir()
    # A file in its place: root would write into any folder.
    (programs / "copilot").touch()
    with pytest.raises(f.InvalidDefinition) as caught:
        find_runtime(programs, str(program))
    command = re.search(r"COPILOT_CACHE_HOME=\S+ \S+ --version", caught.value.reason)
    assert command
    (programs / "copilot").unlink()
    assert os.system(f"{command[0]} > /dev/null") == 0
    monkeypatch.setattr(copilot_program, "_unpack", lambda *_: pytest.fail("unpacked again"))
    assert find_runtime(programs, str(program)).folder.is_relative_to(programs)


def test_another_machines_package_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "node_modules" / "@github"
    fake(packages / "copilot-linux-x64")
    fake(packages / "copilot-linux-arm64")
    for machine, name in (("x86_64", "x64"), ("aarch64", "arm64")):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        shutil.rmtree(tmp_path / "copilot", ignore_errors=True)
        find_runtime(tmp_path)
        assert runs(packages / f"copilot-linux-{name}") == 1
