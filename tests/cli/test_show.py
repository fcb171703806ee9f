"""``airflow agents show``."""

from __future__ import annotations

import io
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_agent_provider.cli.lanes import draw, in_order
from tests.cli.command import run

WIDE = """\
name: wide
description: Forks and joins.
defaults: {agent: codex}
steps:
  - {id: plan, prompt: go, access: read_only}
  - {id: front, prompt: go, depends_on: plan}
  - {id: back, agent: [claude, codex], prompt: go, depends_on: plan, output: docs/back.md}
  - {id: docs, prompt: go, depends_on: plan, when: "{{ params.ref == '' }}"}
  - {id: lint, run: ruff check ., depends_on: back}
  - {id: test, prompt: go, depends_on: [front, lint], verify: pytest -q}
  - {id: end, approve: Good?, depends_on: [test, docs, plan], when: "{{ params.ref }}"}
"""
GRAPH = """\
wide: 7 steps
Forks and joins.

●        plan   codex               read only
├─┬─┬─╮
● │ │ │  front  codex
│ │ │ │
│ ● │ │  back   claude, else codex  → docs/back.md
│ │ │ │
│ │ ● │  docs   codex               when {{ params.ref == '' }}
│ │ │ │
│ ● │ │  lint   $ ruff check .
├─╯ │ │
●   │ │  test   codex               verify: pytest -q
├───┴─╯
●        end    approval: Good?     when {{ params.ref }}
"""


@pytest.fixture
def dags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the DAGs folder, with one workflow; the current folder is another."""
    folder = tmp_path / "dags"
    folder.mkdir()
    (folder / "wide.yaml").write_text(WIDE)
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(folder))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return folder


def test_the_graph_as_text(dags: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("wide", str(dags / "wide.yaml")):
        assert run(capsys, "show", name) == (0, GRAPH, "")


def test_a_terminal_that_knows_ascii_alone(dags: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    from airflow_agent_provider.cli import show

    show.show(show.Namespace(workflow="wide", format="text", save=None))
    terminal.seek(0)
    rows = terminal.read().splitlines()
    assert rows[4] == "+-+-+-+"
    assert rows[7].startswith("| * | |  back")


def test_the_graph_for_mermaid(dags: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = WIDE.replace("ruff check .", '"echo \\"#a & b\\""')
    (dags / "wide.yaml").write_text(text)
    done = run(capsys, "show", "wide", "--format", "mermaid")
    lines = done.out.splitlines()
    assert lines[:3] == ["flowchart TD", '  step1["plan<br/>codex"]', '  step2["front<br/>codex"]']
    assert '  step5["lint<br/>$ echo #34;#35;a #38; b#34;"]' in lines
    edges = {line.strip() for line in lines if "-->" in line}
    assert edges == {
        *("step1 --> step2", "step1 --> step3", "step1 --> step4", "step3 --> step5"),
        *("step2 --> step6", "step5 --> step6"),
        *("step6 --> step7", "step4 --> step7", "step1 --> step7"),
    }


def test_a_picture_by_the_program_dot(
    dags: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("graphviz")
    program = tmp_path / "bin" / "dot"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@"\nwhile read -r line; do echo "$line"; done\n')
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(program.parent))
    assert run(capsys, "show", "wide", "--format", "png") == (0, "wide.png\n", "")
    drawn = Path("wide.png").read_text()
    assert "-Tpng" in drawn
    assert "plan -> front" in drawn
    assert run(capsys, "show", "wide", "-f", "svg", "-s", "a.svg") == (0, "a.svg\n", "")
    done = run(capsys, "show", "wide", "--format", "svg", "--save", "nowhere/a.svg")
    said = "airflow agents show: nowhere/a.svg cannot be written: No such file or directory\n"
    assert done == (1, "", said)


def test_without_graphviz_it_says_how_to_install_it(
    dags: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    done = run(capsys, "show", "wide", "--format", "svg")
    assert (done.status, done.out) == (1, "")
    assert "pip install 'apache-airflow[graphviz]'" in done.err


def test_what_cannot_be_shown_is_said(dags: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "show", "wid")
    text = f"wid:1:1: no workflow 'wid' below {dags}; did you mean 'wide'?\n"
    assert done == (1, "", text)
    done = run(capsys, "show", "missing.yaml")
    assert done.err == "missing.yaml:1:1: there is no such file or folder; check the path\n"
    (dags / "wide.yaml").write_text(WIDE.replace("depends_on: back", "depends_on: bak"))
    done = run(capsys, "show", "wide")
    text = f"{dags}/wide.yaml:9:47: unknown step 'bak'; did you mean 'back'?\n"
    assert done == (1, "", text)
    assert run(capsys, "show", "wide", "--save", "x.txt").status == 1
    assert run(capsys, "show", "wide", "--format", "gif").status == 2


GRAPHS = st.integers(1, 12).flatmap(
    lambda size: st.tuples(
        *(
            st.lists(st.integers(0, max(node - 1, 0)), unique=True, max_size=4)
            for node in range(size)
        )
    ).map(
        lambda before: {
            f"n{node}": [f"n{other}" for other in others if other < node]
            for node, others in enumerate(before)
        }
    )
)


@given(GRAPHS)
def test_lanes_lead_from_each_step_to_those_that_follow(graph: dict[str, list[str]]) -> None:
    """What is drawn, read back sign by sign, is the graph."""
    ends: dict[int, set[str]] = {}
    read: dict[str, set[str]] = {}
    for signs, node in draw(graph):
        if node is not None:
            at = signs.index("●") // 2
            read[node] = ends.get(at, set())
            ends[at] = {node}
            continue
        for index in list(ends):
            if signs[2 * index : 2 * index + 1] in ("", " "):
                del ends[index]
        joined = [index // 2 for index, sign in enumerate(signs) if sign in "├┬╮┴╯"]
        for index in joined[1:]:
            if signs[index * 2] in "┬╮":
                ends[index] = set(ends[joined[0]])
            else:
                ends[joined[0]] = ends[joined[0]] | ends.pop(index)
    assert read == {node: set(before) for node, before in graph.items()}


def test_steps_come_after_those_before_them_and_otherwise_as_in_the_file() -> None:
    given = {"d": ["a", "c"], "c": ["a"], "b": [], "a": []}
    assert list(in_order(given)) == ["b", "a", "c", "d"]
