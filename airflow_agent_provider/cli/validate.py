"""``airflow agents validate``: all that is wrong with workflow files, before Airflow sees them."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from dag_factory.errors import InvalidWorkflow, Problem, printable
from dag_factory.loader import definition_names
from dag_factory.reader import read_definition


def validate(args: Namespace) -> None:
    """Print each error of the given files as ``FILE:LINE:COLUMN: …``, or the valid workflows.

    Of a folder, the definitions directly in it are checked, as a loader there would take them.

    :param args: ``paths`` are the files and folders.
    :raises SystemExit: with status 1 if there is any error.
    """
    valid: list[str] = []
    problems: list[Problem] = []
    for path in map(Path, args.paths):
        try:
            for file in _files(path):
                valid.append(_check(file, problems))
        except InvalidWorkflow as error:
            problems += error.problems
    # Workflows that share a template share its errors.
    sys.stdout.writelines(f"{line}\n" for line in dict.fromkeys(problems) or valid)
    if problems:
        raise SystemExit(1)


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    try:
        names = definition_names(path)
    except OSError as error:
        text = f"the folder cannot be read: {error.strerror}; make it readable"
        raise InvalidWorkflow([Problem(str(path), 1, 1, text)]) from None
    if not names:
        text = "the folder holds no workflows; they end in .yaml, .yml or .json"
        raise InvalidWorkflow([Problem(str(path), 1, 1, text)])
    for name in names:
        yield path / name


def _check(path: Path, problems: list[Problem]) -> str:
    """Return the line of a valid workflow; add what is wrong with any other to ``problems``."""
    try:
        workflow = read_definition(path).workflow
    except InvalidWorkflow as error:
        problems += error.problems
        return ""
    steps = "1 step" if len(workflow.steps) == 1 else f"{len(workflow.steps)} steps"
    return f"{printable(str(path))}: workflow {workflow.name} is valid: {steps}"
