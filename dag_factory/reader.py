"""A definition's file to the checked definition, or to everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from pydantic import ValidationError

from dag_factory.definition import Workflow
from dag_factory.errors import Fault, InvalidWorkflow, Problem, printable, show
from dag_factory.files import Files
from dag_factory.graph import check
from dag_factory.source import MAX_BYTES, Source, read_source

#: Endings of definitions' files.
SUFFIXES = (".yaml", ".yml", ".json")


class Definition(NamedTuple):
    """A definition without fault.

    :param workflow: what it says.
    :param text: the text of its file.
    :param files: where its prompts and schemas are.
    """

    workflow: Workflow
    text: str
    files: Files


def read_definition(
    path: Path,
    file: str | None = None,
    files: Files | None = None,
    *,
    references: bool = True,
) -> Definition:
    """Read and check a definition.

    :param path: its file.
    :param file: the file, as errors shall name it; None for ``path``.
    :param files: reads the prompts and schemas of the file's folder; None for a new reader.
    :param references: whether to check what the prompts and other templates name.
    :raises InvalidWorkflow: with everything that is wrong.
    """
    file = printable(str(path) if file is None else file)
    content = _read(path, file)
    source = read_source(content, file, json=path.suffix == ".json")
    files = files or Files(path.parent)
    faults = [*check(source.value, files, references=references), *_check_stem(source, path)]
    try:
        workflow = Workflow.model_validate(source.value)
    except ValidationError as error:
        from dag_factory.messages import translate

        faults += translate(error)
    if faults or source.problems:
        raise InvalidWorkflow([*source.problems, *map(source.locate, faults)])
    return Definition(workflow, source.text, files)


def _read(path: Path, file: str) -> bytes:
    try:
        # Opening a pipe would wait for its writer.
        if not S_ISREG(path.stat().st_mode):
            raise InvalidWorkflow([Problem(file, 1, 1, "not a plain file; name a workflow's file")])
        if path.suffix not in SUFFIXES:
            text = "no workflow's file; its name ends in .yaml, .yml or .json"
            raise InvalidWorkflow([Problem(file, 1, 1, text)])
        with path.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        text = "there is no such file or folder; check the path"
        raise InvalidWorkflow([Problem(file, 1, 1, text)]) from None
    except (OSError, ValueError) as error:
        text = f"the file cannot be read: {getattr(error, 'strerror', error)}; make it readable"
        raise InvalidWorkflow([Problem(file, 1, 1, text)]) from None


def _check_stem(source: Source, path: Path) -> list[Fault]:
    """Return what is wrong between the file's name and what stands in it and beside it.

    Airflow asks for a workflow by its name; that it is the file's name as well makes it one file to
    read, whatever the folder's size.
    """
    faults = []
    name = source.value.get("name") if isinstance(source.value, dict) else None
    if isinstance(name, str) and name and name != path.stem:
        text = f"the name is {show(name)}, but the file is {show(path.name)}; make them equal"
        faults.append(Fault(("name",), text))
    for suffix in SUFFIXES:
        twin = path.with_suffix(suffix)
        if suffix != path.suffix and twin.is_file():
            text = f"{path.name!r} and {twin.name!r} define the same workflow; remove or rename one"
            faults.append(Fault(("name",), text))
    return faults
