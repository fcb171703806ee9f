"""The names that a step's templates may use, and what is known of their values before a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache, cached_property, lru_cache
from typing import Any

from airflow.sdk.definitions.context import KNOWN_CONTEXT_KEYS

from airflow_agent_provider.agents.template_names import (
    AnswerNames,
    ApprovalValues,
    EarlyNames,
    EarlyRunNames,
    LateNames,
    ResultNames,
    RunNames,
    WorkflowNames,
)
from dag_factory.errors import closest, nearest, show
from dag_factory.files import Files
from dag_factory.parts import RawStep, as_mapping
from dag_factory.schedule import OWN_PARAMS
from dag_factory.shapes import Fields, Missing, OfSchema, PlainText, Shape, of_value
from dag_factory.templates import global_names

#: The names of a template, each with what is known of its value; None for nothing.
Names = Mapping[str, Shape | None]
#: Returns, of a step's id, those of all steps that come before it; None where that is not known,
#: since what it depends on is an error already.
Upstream = Callable[[str], Collection[str] | None]

# What makes a step one whose results are those of an attempt, and what makes several of one step.
_ATTEMPTED = frozenset(("prompt", "run"))
_SEVERAL = frozenset(("for_each", "pick"))


class KnownNames:
    """The names that the templates of a workflow's steps may use.

    :param workflow: the workflow's values.
    :param steps: its steps.
    :param upstream: returns the ids of the steps that come before one.
    :param files: where schemas are.
    """

    def __init__(
        self, workflow: dict[str, Any], steps: list[RawStep], upstream: Upstream, files: Files
    ) -> None:
        self._workflow = workflow
        self._upstream = lru_cache(maxsize=64)(upstream)
        self._results = {step.id: _result(step, files) for step in steps if step.id is not None}

    def early(self, step_id: str) -> dict[str, Shape | None]:
        """Return the names of a step's template that is rendered before it has a workspace."""
        return {
            **_open_names(),
            "params": self._params,
            "steps": _Steps(step_id, self._upstream, self._results),
            "run": _EARLY_RUN,
            "workflow": _WORKFLOW,
        }

    def late(self, step_id: str) -> dict[str, Shape | None]:
        """Return the names of a step's template that is rendered in its workspace."""
        return {**self.early(step_id), "run": _RUN, "file": None}

    def prompt(self, step_id: str, context: Mapping[str, Any]) -> dict[str, Shape | None]:
        """Return the names of a step's prompt.

        :param step_id: the step's id.
        :param context: its own ``context``.
        """
        return {**self.late(step_id), "context": of_value("'context'", context)}

    @cached_property
    def _params(self) -> Shape:
        params = as_mapping(self._workflow.get("params"))
        known = {name: _param(name, schema) for name, schema in params.items()}
        return _Params({**dict.fromkeys(OWN_PARAMS), **known})


@cache
def imported_names() -> Names:
    """Return the names of a template that is imported, if not ``with context``."""
    return dict.fromkeys(global_names())


def unknown_name(name: str, names: Names) -> str:
    """Return what is said of a name that there is not."""
    if name in EarlyNames.__annotations__:
        return f"an imported template does not know {show(name)}; import it 'with context'"
    for owner in ("params", "steps", "context"):
        # People forget to say where a name belongs.
        if name in getattr(names.get(owner), "names", ()):
            return f"unknown name {show(name)}; did you mean '{owner}.{name}'?"
    ours = [own for own in _OURS if own in names]
    if name in _OURS:
        return f"{show(name)} is not known here; there are {', '.join(ours)}, and Airflow's names"
    if closest(name, ours) or closest(name, names):
        return f"unknown name {show(name)}; {nearest(name, ours if closest(name, ours) else names)}"
    return f"unknown name {show(name)}; there are {', '.join(ours)}, and Airflow's names"


_OURS = sorted((*LateNames.__annotations__, "context"))


@cache
def _open_names() -> dict[str, Shape | None]:
    return dict.fromkeys((*global_names(), *KNOWN_CONTEXT_KEYS))


_EARLY_RUN = Fields("'run'", dict.fromkeys(EarlyRunNames.__annotations__))
_RUN = Fields("'run'", dict.fromkeys(RunNames.__annotations__))
_WORKFLOW = Fields("'workflow'", dict.fromkeys(WorkflowNames.__annotations__))


class _Params(Fields):
    def __init__(self, fields: Mapping[str, Shape | None]) -> None:
        super().__init__("'params'", fields)

    def missing(self, key: str) -> str:
        if closest(key, self.fields):
            return f"the param {show(key)} is not declared; {nearest(key, self.fields)}"
        there_are = ", ".join(sorted(self.fields))
        advice = f"declare it under 'params', beside {there_are}"
        return f"the param {show(key)} is not declared; {advice}"


def _param(name: str, schema: Any) -> Shape | None:
    return OfSchema(f"the param {show(name)}", schema, schema) if isinstance(schema, dict) else None


class _Steps:
    """The steps that come before one.

    :param step_id: this step.
    :param upstream: returns the ids of the steps that come before one.
    :param results: what is known of the results of all steps.
    """

    def __init__(
        self, step_id: str, upstream: Upstream, results: Mapping[str, Shape | None]
    ) -> None:
        self._step_id = step_id
        self._upstream = upstream
        self._results = results

    @property
    def names(self) -> Collection[str]:
        """The steps' ids, as far as they are known."""
        return self._upstream(self._step_id) or ()

    def part(self, key: str | int) -> Shape | Missing | None:
        """See :class:`~dag_factory.shapes.Shape`."""
        upstream = self._upstream(self._step_id)
        if not isinstance(key, str) or upstream is None:
            return None
        return self._results.get(key) if key in upstream else Missing(self._missing(key, upstream))

    def _missing(self, key: str, upstream: Collection[str]) -> str:
        this = show(self._step_id)
        if key == self._step_id:
            return f"step {this} reads its own result, which it has not yet; remove this"
        if self._step_id in (self._upstream(key) or () if key in self._results else ()):
            return f"step {show(key)} comes after {this}, so it has no result yet; remove this"
        if key in self._results:
            return f"step {show(key)} is not upstream of {this}; add it to 'depends_on'"
        others = [other for other in self._results if other != self._step_id]
        beyond = not closest(key, upstream) and closest(key, others)
        return f"unknown step {show(key)}; {nearest(key, others if beyond else upstream)}"


class _StepResult(Fields):
    """The result of a step that ends in one attempt.

    :param step: the step.
    :param files: where its schema may be.
    """

    def __init__(self, step: RawStep, files: Files) -> None:
        keys = dict.fromkeys(ResultNames.__annotations__)
        super().__init__(f"the result of {_called(step)}", keys, Mapping)
        self._step = step
        self._files = files

    def part(self, key: str | int) -> Shape | Missing | None:
        """See :class:`~dag_factory.shapes.Shape`."""
        return self._output if key == "output" else super().part(key)

    @cached_property
    def _output(self) -> Shape | None:
        output = self._step.values.get("output")
        schema = output.get("schema") if isinstance(output, dict) else None
        title = f"the output of {_called(self._step)}"
        if schema is None:
            return PlainText(title, "give that step an 'output' with a 'schema', or remove this")
        if isinstance(schema, str):
            schema = self._files.schema(schema)
        return OfSchema(title, schema, schema)


def _result(step: RawStep, files: Files) -> Shape | None:
    if not _SEVERAL.isdisjoint(step.values):
        return None
    if not _ATTEMPTED.isdisjoint(step.values):
        return _StepResult(step, files)
    if "approve" not in step.values:
        return None
    answer = Fields(f"the output of {_called(step)}", dict.fromkeys(AnswerNames.__annotations__))
    keys = {**dict.fromkeys(ApprovalValues.__annotations__), "output": answer}
    return Fields(f"the result of {_called(step)}", keys, Mapping)


def _called(step: RawStep) -> str:
    return f"step {show(step.id)}"
