"""The parts of a definition as they were read, whatever their shape.

Checks that compare parts work on these, so that a definition whose one step is wrong still gets the
errors of all others. What is not of the right shape is passed over: the models of
:mod:`dag_factory.definition` report it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dag_factory.definition import KIND_BY_KEY
from dag_factory.errors import Path


class RawStep(NamedTuple):
    """A step as it was read.

    :param path: the way to it.
    :param id: its id, None if it is no text.
    :param values: all that it says.
    """

    path: Path
    id: str | None
    values: dict[str, Any]

    @property
    def is_agents(self) -> bool:
        """Whether it is an agent's step."""
        return "prompt" in self.values or KIND_BY_KEY.keys().isdisjoint(self.values)


def as_mapping(value: Any) -> dict[str, Any]:
    """Return ``value``, or an empty mapping if it is none."""
    return value if isinstance(value, dict) else {}


def as_text(value: Any) -> str | None:
    """Return ``value``, or None if it is no text or empty."""
    return value if isinstance(value, str) and value else None


def steps_of(workflow: dict[str, Any]) -> list[RawStep]:
    """Return the steps of a workflow."""
    steps = workflow.get("steps")
    return [
        RawStep(("steps", index), as_text(step.get("id")), step)
        for index, step in enumerate(steps if isinstance(steps, list) else ())
        if isinstance(step, dict)
    ]


def reads_only(step: RawStep, defaults: dict[str, Any]) -> bool:
    """Return whether a step may change nothing, by its own word or by the workflow's defaults."""
    return (step.values.get("access") or defaults.get("access")) == "read_only"
