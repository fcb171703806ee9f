"""What the parts of a definition say of each other: steps, agents, prompts and schemas."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from airflow_agent_provider.agents.prompt_names import PROMPT_SUFFIXES, prompt_file, prompt_url
from dag_factory.capabilities import check_agents
from dag_factory.errors import Fault, Path, nearest, show
from dag_factory.files import Files, schema_fault
from dag_factory.parts import RawStep, as_mapping, as_text, reads_only, steps_of
from dag_factory.schedule import is_scheduled, param_faults, schedule_fault


def check(value: Any, files: Files, *, references: bool = True) -> Iterator[Fault]:
    """Yield what is wrong between the parts of a definition.

    :param value: the definition's values.
    :param files: where its prompts and schemas are.
    :param references: whether to read the prompts too, for what they name.
    """
    workflow = value if isinstance(value, dict) else {}
    defaults = as_mapping(workflow.get("defaults"))
    steps = steps_of(workflow)
    yield from _check_schedule(workflow)
    yield from check_agents(workflow, steps)
    ids = yield from _check_ids(steps)
    depends_on: dict[str, dict[str, Path]] = {}
    for step in steps:
        known = yield from _check_depends_on(step, ids)
        if step.id is not None:
            depends_on.setdefault(step.id, known)
        yield from _check_changes(step, defaults)
        yield from _check_prompt(step, files)
        yield from _check_schema(step, files)
    if references:
        # Costs what a task's own parse need not pay.
        from dag_factory.references import check_references

        def upstream_of(step_id: str) -> set[str] | None:
            return _upstream_of(step_id, steps, depends_on)

        yield from check_references(workflow, steps, upstream_of, files)
    yield from _check_cycles(depends_on)


def _check_schedule(workflow: dict[str, Any]) -> Iterator[Fault]:
    schedule = workflow.get("schedule")
    if isinstance(schedule, str) and (text := schedule_fault(schedule)):
        yield Fault(("schedule",), text)
    yield from param_faults(as_mapping(workflow.get("params")), scheduled=is_scheduled(schedule))


def _check_ids(steps: list[RawStep]) -> Generator[Fault, None, dict[str, Path]]:
    """Yield duplicate ids; return the steps' paths by id."""
    paths: dict[str, Path] = {}
    for step in steps:
        if step.id is None:
            continue
        if step.id in paths:
            first = int(paths[step.id][1]) + 1
            text = f"duplicate id {show(step.id)}; step {first} has it already"
            yield Fault((*step.path, "id"), text)
        else:
            paths[step.id] = step.path
    return paths


def _check_depends_on(
    step: RawStep, ids: dict[str, Path]
) -> Generator[Fault, None, dict[str, Path]]:
    """Yield what a step cannot depend on; return what it does, with the paths that say so."""
    known: dict[str, Path] = {}
    for name, at in _depends_on(step):
        if name == step.id:
            yield Fault(at, f"step {show(name)} depends on itself; remove this")
        elif name not in ids:
            others = [other for other in ids if other != step.id]
            yield Fault(at, f"unknown step {show(name)}; {nearest(name, others)}")
        elif name in known:
            yield Fault(at, f"{show(name)} is named twice; remove one")
        else:
            known[name] = at
    return known


def _depends_on(step: RawStep) -> Iterator[tuple[str, Path]]:
    given = step.values.get("depends_on")
    path: Path = (*step.path, "depends_on")
    if isinstance(given, list):
        for index, item in enumerate(given):
            if name := as_text(item):
                yield name, (*path, index)
    elif name := as_text(given):
        yield name, path


def _upstream_of(
    step_id: str, steps: list[RawStep], depends_on: dict[str, dict[str, Path]]
) -> set[str] | None:
    """Return all steps before a step; None where any of them depends on what is no step."""
    found: set[str] = set()
    waiting = [step_id]
    while waiting:
        new = depends_on[waiting.pop()].keys() - found
        found |= new
        waiting += new
    for step in steps:
        if step.id == step_id or step.id in found:
            known = depends_on[step.id]
            if any(name not in known for name, _ in _depends_on(step)):
                return None
    return found


def _check_cycles(depends_on: dict[str, dict[str, Path]]) -> Iterator[Fault]:
    """Yield each circle of steps; of circles that share a step, the first that is found."""
    while cycle := _cycle(depends_on):
        # The circle starts at the step that comes first in the file.
        order = list(depends_on)
        first = cycle.index(min(cycle, key=order.index))
        cycle = [*cycle[first:], *cycle[:first]]
        said = " → ".join(map(show, [*cycle, cycle[0]]))
        at = depends_on[cycle[0]][cycle[-1]]
        yield Fault(at, f"the steps wait for each other: {said}; remove one 'depends_on' of these")
        for step in cycle:
            del depends_on[step]


def _cycle(depends_on: dict[str, dict[str, Path]]) -> list[str] | None:
    """Return the steps of a circle, each before one that depends on it; None without a circle."""
    try:
        TopologicalSorter(depends_on).prepare()
    except CycleError as error:
        # The sorter names the first step again at the end.
        return list(error.args[1][1:])
    return None


def _check_changes(step: RawStep, defaults: dict[str, Any]) -> Iterator[Fault]:
    if step.values.get("changes") == "required" and reads_only(step, defaults):
        text = (
            "a read-only step cannot change what it must; give it 'access: write', or remove this"
        )
        yield Fault((*step.path, "changes"), text)


def _check_prompt(step: RawStep, files: Files) -> Iterator[Fault]:
    prompt = as_text(step.values.get("prompt"))
    if prompt is None:
        return
    text = None
    if prompt_file(prompt):
        text = files.fault(prompt)
    elif prompt.startswith("s3://"):
        if not prompt_url(prompt) or not all(prompt.removeprefix("s3://").partition("/")):
            text = f"{show(prompt)} names no object; write s3://bucket/key"
    elif _meant_as_file(prompt, files):
        endings = ", ".join(PROMPT_SUFFIXES)
        text = f"{show(prompt)} is no prompt file; its name has no spaces and ends in {endings}"
    if text:
        yield Fault((*step.path, "prompt"), text)


def _meant_as_file(prompt: str, files: Files) -> bool:
    """Return whether a prompt that counts as text looks like a mistaken file name."""
    if len(prompt) > 255 or "\n" in prompt.strip():
        return False
    return ("/" in prompt and " " not in prompt) or files.exists(prompt)


def _check_schema(step: RawStep, files: Files) -> Iterator[Fault]:
    schema = as_mapping(step.values.get("output")).get("schema")
    path: Path = (*step.path, "output", "schema")
    if isinstance(schema, dict):
        if schema and (fault := schema_fault(schema)):
            yield Fault((*path, *fault[0]), f"no JSON schema: {fault[1]}; see json-schema.org")
    elif name := as_text(schema):
        if name.startswith("s3://"):
            yield Fault(
                path, "a schema in S3 is not supported yet; put the file beside the prompts"
            )
        elif text := files.schema_fault(name):
            yield Fault(path, text)
