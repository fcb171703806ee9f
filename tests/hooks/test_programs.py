"""Where agents' programs are found, and what is bound for them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.hooks.programs import find_program

NODE = Path(shutil.which("node") or "/usr/bin/node").resolve()


def executable(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)
    return path


def npm_program(programs: Path, content: str, name: str = "cli.js") -> Path:
    """Install a program as npm does: a link in ``.bin`` to a file of the package."""
    script = executable(programs / "node_modules" / "@org" / "agent" / name, content)
    (programs / "node_modules" / ".bin").mkdir()
    (programs / "node_modules" / ".bin" / "agent").symlink_to(f"../@org/agent/{name}")
    return script


@pytest.mark.parametrize("name", ["cli.js", "cli.mjs", "cli"])
def test_a_script_of_node_is_run_by_node(tmp_path: Path, name: str) -> None:
    script = npm_program(tmp_path, "#!/usr/bin/env node\nconsole.log(process.argv[2])\n", name)
    command, folders = find_program(("agent", "--acp"), tmp_path, "install it")
    assert command == (str(NODE), str(script), "--acp")
    # All of what npm installed beside it: packages find each other there.
    assert folders[0] == tmp_path / "node_modules"
    assert subprocess.run(command, capture_output=True, text=True).stdout == "--acp\n"


def test_nodes_own_installation_is_bound_where_it_is_not_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm_program(tmp_path, "#!/usr/bin/env node\n")
    node = executable(tmp_path / "node-22" / "bin" / "node", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(node.parent))
    command, folders = find_program(("agent",), tmp_path, "install it")
    assert command[0] == str(node)
    assert folders == (tmp_path / "node_modules", tmp_path / "node-22")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidDefinition, match="needs node"):
        find_program(("agent",), tmp_path, "install it")


def test_any_other_program_runs_by_itself(tmp_path: Path) -> None:
    binary = npm_program(tmp_path, "\x7fELF", "agent.exe")
    command, folders = find_program(("agent", "acp"), tmp_path, "install it")
    link = tmp_path / "node_modules" / ".bin" / "agent"
    assert command == (str(link), "acp")
    assert folders == (link, tmp_path / "node_modules")
    assert binary.is_relative_to(folders[1])


def test_of_an_absolute_path_nothing_beside_it_is_bound(tmp_path: Path) -> None:
    program = executable(tmp_path / "bin" / "goose", "#!/bin/sh\n")
    (tmp_path / "bin" / "credentials").touch()
    assert find_program((str(program), "acp"), tmp_path, "install it") == (
        (str(program), "acp"),
        (program, program),
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("agent", "node_modules/.bin/agent is missing; install it"),
        ("/nowhere/agent", "/nowhere/agent is missing; install it"),
        ("bin/agent", "neither a program's name nor an absolute path"),
    ],
)
def test_a_missing_program_says_what_mends_it(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(InvalidDefinition, match=words):
        find_program((name,), tmp_path, "install it")


def test_what_cannot_be_run_is_missing(tmp_path: Path) -> None:
    npm_program(tmp_path, "#!/usr/bin/env node\n").chmod(0o644)
    with pytest.raises(InvalidDefinition, match="missing"):
        find_program(("agent",), tmp_path, "install it")
