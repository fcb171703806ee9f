"""``airflow agents new``: a workflow and its prompts from a template."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from importlib.resources import files
from pathlib import Path

from airflow.configuration import conf

from airflow_agent_provider.agents.registry import AGENTS
from airflow_agent_provider.cli.workflow import fail
from dag_factory.definition import NAME_PATTERN
from dag_factory.errors import nearest
from dag_factory.json_schema import schema_text
from dag_factory.reader import SUFFIXES

_TEMPLATE = files("airflow_agent_provider.cli") / "template"
_PROMPTS = ("plan.md", "implement.md", "review.md")
_LOADER = """\
from dag_factory import load_workflows  # each definition beside this file becomes an Airflow DAG

globals().update(load_workflows(__file__))
"""


def new(args: Namespace) -> None:
    """Write a workflow, its prompts, and what its folder lacks; print what to do next.

    :param args: ``name``, ``folder`` (None for the DAGs folder) and ``agent``.
    :raises SystemExit: 1, after a line on stderr, if a file is there or cannot be written.
    """
    _check(args.name, args.agent)
    folder = Path(args.folder or conf.get_mandatory_value("core", "dags_folder"))
    own, shared = _texts(args.name, args.agent, folder)
    taken = [path for path in (*own, *_twins(folder, args.name)) if os.path.lexists(path)]
    if taken:
        fail(
            *(f"airflow agents new: {path} is there already; nothing was written" for path in taken)
        )
    made = {**own, **{path: text for path, text in shared.items() if not os.path.lexists(path)}}
    for path, text in made.items():
        _write(path, text)
    sys.stdout.writelines(f"{line}\n" for line in _told(args, folder, list(made)))


def _check(name: str, agent: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        fail(
            f"airflow agents new: {name!r} is no name; up to 200 letters, digits, '-', '_' and "
            "'.', the first a letter or digit"
        )
    if agent not in AGENTS:
        fail(f"airflow agents new: unknown agent {agent!r}; {nearest(agent, AGENTS)}")


def _texts(name: str, agent: str, folder: Path) -> tuple[dict[Path, str], dict[Path, str]]:
    """Return the files of the workflow itself, and those that it shares with others."""
    # Prompts are found in the folder and beside it. Beside it is where a repository has them; of a
    # folder that is not called so, what is beside it may be no part of what is deployed.
    beside = folder.absolute().name == "dags" or (folder.absolute().parent / "prompts").is_dir()
    home, way = (folder / os.pardir, "../") if beside else (folder, "")
    schema = "schemas/workflow.schema.json"
    words = {"<name>": name, "<agent>": agent, "<schema>": f"{way}{schema}"}
    own = {folder / f"{name}.yaml": _filled("workflow.yaml", words)}
    for prompt in _PROMPTS:
        own[home / "prompts" / name / prompt] = _filled(prompt, words)
    shared = {home / schema: schema_text()}
    if not _has_loader(folder):
        shared[folder / "workflows.py"] = _LOADER
    return _normal(own), _normal(shared)


def _filled(file: str, words: dict[str, str]) -> str:
    text = (_TEMPLATE / file).read_text(encoding="utf-8")
    for word, meant in words.items():
        text = text.replace(word, meant)
    return text


def _normal(texts: dict[Path, str]) -> dict[Path, str]:
    return {Path(os.path.normpath(path)): text for path, text in texts.items()}


def _has_loader(folder: Path) -> bool:
    try:
        return any(b"load_workflows" in path.read_bytes() for path in folder.glob("*.py"))
    except OSError:
        return False


def _twins(folder: Path, name: str) -> list[Path]:
    """Return the other files that would define a workflow of this name."""
    return [folder / f"{name}{suffix}" for suffix in SUFFIXES if suffix != ".yaml"]


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        fail(f"airflow agents new: {path} cannot be written: {error.strerror}")


def _told(args: Namespace, folder: Path, made: list[Path]) -> list[str]:
    file = made[0]
    return [
        "Written:",
        *(f"  {path}" for path in made),
        "",
        "Next:",
        f"  edit {file} and its prompts, then",
        f"  airflow agents validate {file}",
        f"  airflow agents show {file}",
        f'  airflow agents render {file} plan --conf \'{{"task": "…"}}\'',
        f"  airflow agents doctor {args.agent}",
        f'  airflow dags trigger {args.name} --conf \'{{"task": "…"}}\'',
    ]
