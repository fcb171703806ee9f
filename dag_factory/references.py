"""What the templates of a workflow read of its steps and params: that there will be such.

What only a run can tell is passed over: keys that are computed, templates whose names are, what a
JSON schema leaves open, and what a template asks for before it reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from airflow_agent_provider.agents.prompt_names import prompt_file, prompt_url
from dag_factory.errors import Fault, Path, Spot
from dag_factory.files import Files
from dag_factory.known_names import (
    KnownNames,
    Names,
    Upstream,
    imported_names,
    unknown_name,
)
from dag_factory.parts import RawStep, as_mapping, as_text
from dag_factory.shapes import Missing
from dag_factory.templates import Link, Part, Reference, Template, Way, read_template


def check_references(
    workflow: dict[str, Any],
    steps: list[RawStep],
    upstream: Upstream,
    files: Files,
) -> Iterator[Fault]:
    """Yield what the templates of a workflow's steps read that there will not be.

    :param workflow: the workflow's values.
    :param steps: its steps.
    :param upstream: returns the ids of the steps that come before one.
    :param files: where prompts and schemas are.
    """
    known = KnownNames(workflow, steps, upstream, files)
    found: dict[tuple[object, ...], Fault] = {}
    for step in steps:
        if step.id is None:
            continue
        for fault in _check_step(step, known, files):
            # A file that several steps share is wrong for all of them in one error.
            shared = fault.spot is not None and fault.spot.file is not None
            key = (None if shared else fault.path, fault.spot, fault.text)
            before = found.setdefault(key, fault)
            if before is not fault:
                found[key] = before._replace(steps=(*before.steps, *fault.steps))
    yield from found.values()


def _check_step(step: RawStep, known: KnownNames, files: Files) -> Iterator[Fault]:
    values, step_id = step.values, step.id or ""
    context = as_mapping(values.get("context"))
    prompt, path = as_text(values.get("prompt")), (*step.path, "prompt")
    if prompt is not None:
        yield from _check_prompt(
            prompt, path, lambda: known.prompt(step_id, context), files, step_id
        )
    for key in ("context", "run"):
        for text, at in _texts(values.get(key), (*step.path, key)):
            yield from check_template(text, at, lambda: known.late(step_id), files)
    for text, at in _early_texts(step):
        yield from check_template(text, at, lambda: known.early(step_id), files)


def _check_prompt(
    prompt: str, path: Path, names: Callable[[], Names], files: Files, step_id: str
) -> Iterator[Fault]:
    if prompt_file(prompt):
        if (text := files.text(prompt)) is not None:
            yield from check_template(text, path, names, files, file=prompt, step=step_id)
    # What is in object storage only a run reads.
    elif not prompt_url(prompt):
        yield from check_template(prompt, path, names, files)


def _early_texts(step: RawStep) -> Iterator[tuple[str, Path]]:
    """Yield the templates that are rendered without a workspace, each with the way to it."""
    yield from _texts(step.values.get("when"), (*step.path, "when"))
    asked = step.values.get("approve")
    path: Path = (*step.path, "approve")
    if isinstance(asked, str):
        yield asked, path
    for key in ("subject", "body"):
        yield from _texts(as_mapping(asked).get(key), (*path, key))


def _texts(value: Any, path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the texts in a value, each with the way to it."""
    if isinstance(value, str):
        yield value, path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))


def check_template(
    text: str,
    path: Path,
    names: Callable[[], Names],
    files: Files,
    *,
    file: str | None = None,
    step: str | None = None,
) -> Iterator[Fault]:
    """Yield what a template reads that there will not be, and what its syntax forbids.

    :param text: the template's text.
    :param path: the way to it in the definition, or to the name of its file.
    :param names: returns the names that it may use, such as
        :meth:`~dag_factory.known_names.KnownNames.late`, which knows the ids of the upstream steps;
        a template that is text alone needs none.
    :param files: where the templates are that it includes.
    :param file: the name of its file; None where the text stands in the definition.
    :param step: the step that it is for, where it has a file, which others may share.
    """
    template = read_template(text)
    if not template.says_nothing:
        rendering = _Rendering(path, files, step)
        yield from rendering.whole(template, file, _Around(names()))


class _Around(NamedTuple):
    """What a template is rendered in.

    :param names: the names that there are.
    :param set_names: names that templates set which include this one, or are of its family.
    :param guards: ways that they ask for.
    """

    names: Names
    set_names: frozenset[str] = frozenset()
    guards: frozenset[Way] = frozenset()


class _Family(NamedTuple):
    """Templates that are rendered as one: each extends the next.

    :param members: the templates, each with the name of its file.
    :param around: what they are rendered in.
    """

    members: list[tuple[Template, str | None]]
    around: _Around


class _Rendering:
    """Follows what is rendered where one template of a step is.

    :param path: the way to it, or to the name of its file, in the definition.
    :param files: where other templates are.
    :param step: the step that it is for; None to leave it out of errors.
    """

    def __init__(self, path: Path, files: Files, step: str | None) -> None:
        self._path = path
        self._files = files
        self._steps = () if step is None else (step,)
        self._seen: set[tuple[int, int]] = set()

    def whole(self, template: Template, file: str | None, around: _Around) -> Iterator[Fault]:
        """Yield the faults of a template and of all that it makes be rendered."""
        family, faults = self._family(template, file, around)
        yield from faults
        for generation, (member, _) in enumerate(family.members):
            yield from self._part(member.body, generation, family)

    def _family(
        self, template: Template, file: str | None, around: _Around
    ) -> tuple[_Family, list[Fault]]:
        members = [(template, file)]
        faults: list[Fault] = []
        while (link := members[-1][0].extends) is not None:
            name = self._found(link)
            if name is None:
                faults += self._not_found(link, members[-1][1])
            text = None if name is None else self._files.text(name)
            if text is None or name in (known for _, known in members):
                break
            members.append((read_template(text), name))
        names = around.set_names.union(*(member.names for member, _ in members))
        guards = around.guards.union(*(member.guards for member, _ in members))
        return _Family(members, _Around(around.names, names, guards)), faults

    def _part(self, part: Part, generation: int, family: _Family) -> Iterator[Fault]:
        """Yield the faults of a part of one of a family's templates."""
        key = (id(part), id(family.around.names))
        if key in self._seen:
            return
        self._seen.add(key)
        template, file = family.members[generation]
        for reference in part.references:
            if (missing := _missing(reference, family.around, template)) is not None:
                yield self._fault(*missing, file, self._steps)
        for text, spot in part.faults:
            yield self._fault(text, spot, file)
        for macro in sorted(part.macros):
            yield from self._part(template.macros[macro], generation, family)
        for block in part.blocks:
            yield from self._block(block, family)
        for link in part.links:
            yield from self._linked(link, file, family.around)

    def _block(self, name: str, family: _Family) -> Iterator[Fault]:
        for generation, (member, _) in enumerate(family.members):
            if (block := member.blocks.get(name)) is not None:
                yield from self._part(block, generation, family)
                if not block.above:
                    return

    def _linked(self, link: Link, file: str | None, around: _Around) -> Iterator[Fault]:
        name = self._found(link)
        text = None if name is None else self._files.text(name)
        if name is None:
            yield from self._not_found(link, file)
        if text is None:
            return
        inner = around if link.context else _Around(imported_names())
        template = read_template(text)
        yield from self.whole(template, name, inner)
        family, _ = self._family(template, name, inner)
        for macro in sorted(link.macros or ()):
            if macro in template.macros:
                yield from self._part(template.macros[macro], 0, family)

    def _found(self, link: Link) -> str | None:
        return next((name for name in link.names if self._files.template_exists(name)), None)

    def _not_found(self, link: Link, file: str | None) -> Iterator[Fault]:
        if not link.optional and link.names:
            said = self._files.fault(link.names[0])
            if said is not None:
                yield self._fault(said, link.spot, file)

    def _fault(self, text: str, spot: Spot, file: str | None, steps: tuple[str, ...] = ()) -> Fault:
        if file is not None:
            spot = spot._replace(file=self._files.beside(file))
        return Fault(self._path, text, spot=spot, steps=steps)


def _missing(reference: Reference, around: _Around, template: Template) -> tuple[str, Spot] | None:
    """Return what a reference reads that there will not be, and where it stands."""
    way, spots = reference
    name = way[0]
    if any(way[:end] in around.guards for end in range(1, len(way) + 1)):
        return None
    # Which value it has where a template sets it too, only a run can tell.
    if name in around.set_names and name not in template.names:
        return None
    if name not in around.names:
        return unknown_name(str(name), around.names), spots[0]
    shape = around.names[str(name)]
    first = len(way) - len(spots)
    for index, key in enumerate(way[1:], 1):
        part = shape.part(key) if shape is not None else None
        if isinstance(part, Missing):
            return (part.text, spots[index - first]) if index >= first else None
        shape = part
    return None
