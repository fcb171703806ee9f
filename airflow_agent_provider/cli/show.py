"""``airflow agents show``: a workflow's graph, as text or as a picture."""

from __future__ import annotations

import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airflow_agent_provider.cli.lanes import ASCII, draw, in_order
from airflow_agent_provider.cli.workflow import build_dag, fail, read_workflow
from airflow_agent_provider.operators.agent import AgentOperator
from airflow_agent_provider.operators.approval import ApproveOperator
from airflow_agent_provider.operators.command import CommandOperator
from airflow_agent_provider.operators.step import StepOperator

if TYPE_CHECKING:
    from airflow.sdk import DAG

_PICTURES = ("svg", "png")
_INSTALL = (
    "a picture needs graphviz: pip install 'apache-airflow[graphviz]', and its program 'dot', as "
    "by apt-get install graphviz; --format text and mermaid need neither"
)
_LONGEST = 48


@dataclass(frozen=True)
class Node:
    """A step as the graph shows it.

    :param id: its id.
    :param doing: who does it, or what is done.
    :param notes: what else is worth knowing.
    """

    id: str
    doing: str
    notes: tuple[str, ...]


def show(args: Namespace) -> None:
    """Print a workflow's graph, or write its picture to a file.

    :param args: ``workflow`` (a file, or a name in the DAGs folder), ``format``, and ``save``, the
        picture's file.
    :raises SystemExit: 1, after what is wrong on stderr, if there is no graph to show.
    """
    path, definition = read_workflow(args.workflow)
    dag = build_dag(path, definition)
    if args.format in _PICTURES:
        print(_picture(dag, args.format, args.save))  # noqa: T201
        return
    if args.save:
        fail(f"airflow agents show: --save is for {' and '.join(_PICTURES)}; redirect the text")
    lines = _mermaid(dag) if args.format == "mermaid" else _text(dag)
    text = "".join(f"{line}\n" for line in lines)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.translate(ASCII).encode("ascii", "backslashreplace").decode()
    sys.stdout.write(text)


def _graph(dag: DAG) -> tuple[dict[str, Node], dict[str, list[str]]]:
    """Return the steps by id, and the ids of those right before each, in the order of the file."""
    tasks = {task.task_id: task for task in dag.tasks}
    given = {
        task_id: [other for other in tasks if other in task.upstream_task_ids]
        for task_id, task in tasks.items()
    }
    upstream = in_order(given)
    return {task_id: _node(tasks[task_id]) for task_id in upstream}, upstream


def _node(task: Any) -> Node:
    if isinstance(task, AgentOperator):
        doing = ", else ".join(choice.agent for choice in task.choices)
    elif isinstance(task, CommandOperator):
        doing = f"$ {_short(task.run)}"
    elif isinstance(task, ApproveOperator):
        doing = f"approval: {_short(task.subject)}"
    else:
        doing = str(task.operator_name)
    return Node(task.task_id, doing, tuple(_notes(task)))


def _notes(task: Any) -> Iterator[str]:
    if when := getattr(task, "when", None):
        yield f"when {_short(when)}"
    if not isinstance(task, StepOperator):
        return
    if task.access == "read_only":
        yield "read only"
    if task.output_path:
        yield f"→ {task.output_path}"
    if task.verify:
        yield f"verify: {_short('; '.join(task.verify))}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _text(dag: DAG) -> list[str]:
    nodes, upstream = _graph(dag)
    steps = "1 step" if len(nodes) == 1 else f"{len(nodes)} steps"
    head = [f"{dag.dag_id}: {steps}", *([dag.description] if dag.description else []), ""]
    rows = list(draw(upstream))
    width = max(len(signs) for signs, _ in rows)
    ids = max(len(node.id) for node in nodes.values())
    doing = max(len(node.doing) for node in nodes.values())
    return head + [
        f"{signs:<{width}}  {_line(nodes[step], ids, doing)}".rstrip() if step else signs
        for signs, step in rows
    ]


def _line(node: Node, ids: int, doing: int) -> str:
    return f"{node.id:<{ids}}  {node.doing:<{doing}}  {'; '.join(node.notes)}"


def _mermaid(dag: DAG) -> list[str]:
    nodes, upstream = _graph(dag)
    # Names of their own: Mermaid gives some words a meaning.
    names = {step: f"step{number}" for number, step in enumerate(nodes, start=1)}
    shapes = [
        f'  {names[step]}["{_quoted(step)}<br/>{_quoted(node.doing)}"]'
        for step, node in nodes.items()
    ]
    edges = [
        f"  {names[before]} --> {names[step]}"
        for step, others in upstream.items()
        for before in others
    ]
    return ["flowchart TD", *shapes, *edges]


def _quoted(text: str) -> str:
    """Return the text with what Mermaid would read as its own as entities."""
    return "".join(f"#{ord(sign)};" if sign in '#"<>&`' else sign for sign in text)


def _picture(dag: DAG, kind: str, save: str | None) -> str:
    """Write the picture by Airflow's own renderer; return the file's name."""
    if find_spec("graphviz") is None or shutil.which("dot") is None:
        fail(f"airflow agents show: {_INSTALL}")
    from airflow.utils.dot_renderer import render_dag

    file = Path(save or f"{dag.dag_id}.{kind}")
    try:
        file.write_bytes(render_dag(cast("Any", dag)).pipe(format=kind))
    except subprocess.CalledProcessError as error:
        fail(f"airflow agents show: dot fails: {error.stderr or error}")
    except OSError as error:
        fail(f"airflow agents show: {file} cannot be written: {error.strerror}")
    return str(file)
