from __future__ import annotations

import os
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.agents.identity import StepKey
from airflow_agent_provider.workspace.cleanup import (
    discard,
    remove_run,
    remove_step,
    remove_tree,
    step_folder,
)

STEP = StepKey("demo", "run 1", "plan")


def fill(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")


def test_a_step_or_a_whole_run_goes(tmp_path: Path) -> None:
    other_step, other_run = StepKey("demo", "run 1", "code"), StepKey("demo", "run 2", "plan")
    for step in (STEP, other_step, other_run):
        fill(step_folder(tmp_path, step) / "tree")
    remove_step(tmp_path, STEP)
    assert not step_folder(tmp_path, STEP).exists()
    assert step_folder(tmp_path, other_step).exists()
    remove_run(tmp_path, STEP)
    assert not step_folder(tmp_path, other_step).exists()
    assert step_folder(tmp_path, other_run).exists()
    remove_run(tmp_path, STEP)


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    fill(kept)
    tree = tmp_path / "tree"
    fill(tree)
    (tree / "to-folder").symlink_to(kept)
    (tree / "to-file").symlink_to(kept / "file")
    remove_tree(tree)
    assert not tree.exists()
    top = tmp_path / "top"
    top.symlink_to(kept)
    remove_tree(top)
    assert not top.is_symlink()
    assert (kept / "file").read_text() == "x"


def test_folders_without_permissions_go(tmp_path: Path) -> None:
    cache = tmp_path / "tree/cache"
    fill(cache / "deep")
    (cache / "deep").chmod(0o500)
    cache.chmod(0o000)
    if os.geteuid() != 0:
        with pytest.raises(PermissionError):
            (cache / "deep").iterdir()
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_left_overs_of_a_killed_discard_go_with_the_next(tmp_path: Path) -> None:
    fill(tmp_path / "step/.discarded-1")
    discard(tmp_path / "step/tree")
    assert list((tmp_path / "step").iterdir()) == []


@pytest.mark.parametrize(
    "step", [StepKey("..", "r", "s"), StepKey("d", "r", "."), StepKey("d", "r", "..")]
)
def test_ids_of_dots_alone_name_no_folder(tmp_path: Path, step: StepKey) -> None:
    with pytest.raises(InvalidDefinition):
        step_folder(tmp_path, step)
