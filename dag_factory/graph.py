"""What the parts of a definition say of each other: steps, agents, prompts and schemas.

Works on the values as they were read, whatever their shape, so that a definition whose one step is
wrong still gets the errors of all others. What is not of the right shape is passed over here: the
models of :mod:`dag_factory.definition` report it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

from airflow_agent_provider.agents.prompt_names import PROMPT_SUFFIXES, prompt_file, prompt_url
from airflow_agent_provider.agents.registry import AGENTS
from dag_factory.definition import LATER_KINDS
from dag_factory.errors import Fault, Path, nearest, show
from dag_factory.files import Files, schema_fault
from dag_factory.schedule import is_scheduled, param_faults, schedule_fault


def check(value: Any, files: Files) -> Iterator[Fault]:
    """Yield what is wrong between the parts of a definition.

    :param value: the definition's values.
    :param files: where its prompts and schemas are.
    """
    workflow = value if isinstance(value, dict) else {}
    defaults = _mapping(workflow.get("defaults"))
    yield from _check_schedule(workflow)
    yield from _check_agent_name(defaults.get("agent"), ("defaults", "agent"))
    steps = _steps(workflow)
    ids = yield from _check_ids(steps)
    depends_on: dict[str, dict[str, Path]] = {}
    for step in steps:
        known = yield from _check_depends_on(step, ids)
        if step.id is not None:
            depends_on.setdefault(step.id, known)
        yield from _check_agent(step, defaults)
        yield from _check_prompt(step, files)
        yield from _check_schema(step, files)
    yield from _check_cycles(depends_on)


class _Step(NamedTuple):
    path: Path
    id: str | None
    values: dict[str, Any]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _steps(workflow: dict[str, Any]) -> list[_Step]:
    steps = workflow.get("steps")
    return [
        _Step(("steps", index), _text(step.get("id")), step)
        for index, step in enumerate(steps if isinstance(steps, list) else ())
        if isinstance(step, dict)
    ]


def _check_schedule(workflow: dict[str, Any]) -> Iterator[Fault]:
    schedule = workflow.get("schedule")
    if isinstance(schedule, str) and (text := schedule_fault(schedule)):
        yield Fault(("schedule",), text)
    yield from param_faults(_mapping(workflow.get("params")), scheduled=is_scheduled(schedule))


def _check_ids(steps: list[_Step]) -> Generator[Fault, None, dict[str, Path]]:
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


def _check_depends_on(step: _Step, ids: dict[str, Path]) -> Generator[Fault, None, dict[str, Path]]:
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


def _depends_on(step: _Step) -> Iterator[tuple[str, Path]]:
    given = step.values.get("depends_on")
    path: Path = (*step.path, "depends_on")
    if isinstance(given, list):
        for index, item in enumerate(given):
            if name := _text(item):
                yield name, (*path, index)
    elif name := _text(given):
        yield name, path


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


def _agent_name(value: Any) -> str | None:
    return _text(value.get("name") if isinstance(value, dict) else value)


def _check_agent_name(value: Any, path: Path) -> Iterator[Fault]:
    name = _agent_name(value)
    if name is not None and name not in AGENTS:
        at = (*path, "name") if isinstance(value, dict) else path
        yield Fault(at, f"unknown agent {show(name)}; {nearest(name, AGENTS)}")


def _check_agent(step: _Step, defaults: dict[str, Any]) -> Iterator[Fault]:
    given, default = step.values.get("agent"), defaults.get("agent")
    yield from _check_agent_name(given, (*step.path, "agent"))
    if given is None and default is None and LATER_KINDS.union(("pick",)).isdisjoint(step.values):
        agents = ", ".join(sorted(AGENTS))
        text = f"step {show(step.id)} has no agent; name one here or under 'defaults': {agents}"
        yield Fault(step.path, text)
    spec = AGENTS.get(_agent_name(default if given is None else given) or "")
    if spec is None:
        return
    output = _mapping(step.values.get("output"))
    read_only = (step.values.get("access") or defaults.get("access")) == "read_only"
    if read_only and not spec.capabilities.read_only:
        others = _agents_with("read_only")
        text = f"{spec.title} cannot work read-only; take 'access: write', or the agent {others}"
        yield Fault(_where(step, "access"), text)
    # Without a file, and where none can be written, the final answer itself has to be structured.
    answers = output.get("schema") is not None and (read_only or output.get("path") is None)
    if answers and not spec.capabilities.structured_output:
        others = _agents_with("structured_output")
        text = (
            f"{spec.title} gives no structured answer; "
            f"add a 'path' that it writes the output to, or take the agent {others}"
        )
        yield Fault((*step.path, "output", "schema"), text)


def _where(step: _Step, key: str) -> Path:
    """Return the path of the key, or of what else in the step says most about it."""
    for candidate in (key, "agent"):
        if step.values.get(candidate) is not None:
            return (*step.path, candidate)
    return step.path


def _agents_with(capability: str) -> str:
    return " or ".join(
        name for name, spec in sorted(AGENTS.items()) if getattr(spec.capabilities, capability)
    )


def _check_prompt(step: _Step, files: Files) -> Iterator[Fault]:
    prompt = _text(step.values.get("prompt"))
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


def _check_schema(step: _Step, files: Files) -> Iterator[Fault]:
    schema = _mapping(step.values.get("output")).get("schema")
    path: Path = (*step.path, "output", "schema")
    if isinstance(schema, dict):
        if schema and (fault := schema_fault(schema)):
            yield Fault((*path, *fault[0]), f"no JSON schema: {fault[1]}; see json-schema.org")
    elif name := _text(schema):
        if name.startswith("s3://"):
            yield Fault(
                path, "a schema in S3 is not supported yet; put the file beside the prompts"
            )
        elif text := files.schema_fault(name):
            yield Fault(path, text)
