"""The results of earlier steps: what XCom holds, and how templates read it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.agents.outcome import INLINE_OUTPUT_BYTES

if TYPE_CHECKING:
    from airflow_agent_provider.hooks.artifacts import ArtifactStore

#: In XCom, the key of a mapping that stands for an output too large for it.
REFERENCE = "$artifact"
#: The name of what a step has changed, for ``git apply``; it is read from its artifact.
PATCH = "patch"


def inline_or_reference(output: Any, uri: str) -> Any:
    """Return ``output``, or a reference to ``uri``, which holds it, where it is too large.

    :param output: text or JSON values.
    :param uri: where the whole output is stored.
    """
    if len(json.dumps(output).encode()) <= INLINE_OUTPUT_BYTES:
        return output
    return {REFERENCE: uri, "json": not isinstance(output, str)}


class StepResult(Mapping[str, Any]):
    """What a step left, as templates read it: ``steps.plan.output``, ``steps.plan.commit``, ….

    :param step_id: the step.
    :param values: its XCom.
    :param load: returns the bytes of an artifact's URI.
    """

    def __init__(
        self, step_id: str, values: Mapping[str, Any], load: Callable[[str], bytes]
    ) -> None:
        self._step_id = step_id
        self._values = values
        self._load = load

    @property
    def prompt_names(self) -> list[str]:
        """The names that a template may ask for."""
        return sorted(self)

    def __getitem__(self, name: str) -> Any:
        if name == PATCH:
            return self._load(self._values["artifacts"]["changes.patch"]).decode(errors="replace")
        value = self._values[name]
        if isinstance(value, Mapping) and REFERENCE in value:
            text = self._load(str(value[REFERENCE])).decode()
            return json.loads(text) if value.get("json") else text
        return value

    def __iter__(self) -> Iterator[str]:
        yield from self._values
        if "changes.patch" in self._values.get("artifacts", {}):
            yield PATCH

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"the results of step {self._step_id!r}"


class Steps:
    """The steps before this one, by id: ``steps.plan``, ``steps['write-tests']``.

    :param upstream: ids of all steps before this one.
    :param pull: returns the XCom of a step, None if it left none.
    :param state: returns the state of a step, for errors.
    :param store: where outputs are that are too large for XCom.
    """

    def __init__(
        self,
        upstream: set[str],
        pull: Callable[[str], Any],
        state: Callable[[str], str],
        store: ArtifactStore,
    ) -> None:
        self._upstream = upstream
        self._pull = pull
        self._state = state
        self._store = store
        self._results: dict[str, StepResult] = {}

    @property
    def prompt_names(self) -> list[str]:
        """The names that a template may ask for."""
        return sorted(self._upstream)

    def __getitem__(self, step_id: str) -> StepResult:
        if step_id not in self._upstream:
            raise KeyError(step_id)
        if step_id not in self._results:
            self._results[step_id] = self._read(step_id)
        return self._results[step_id]

    def __repr__(self) -> str:
        return "steps (those before this one)"

    def _read(self, step_id: str) -> StepResult:
        values = self._pull(step_id)
        if values is None:
            raise InvalidDefinition(
                f"the prompt reads the step {step_id!r}, which has no result: it is "
                f"{self._state(step_id)}. Ask for it only where it ran, or make this step depend "
                "on it"
            )
        if not isinstance(values, Mapping):
            values = {"output": values}
        return StepResult(step_id, values, lambda uri: self._store.get(self._store.key(uri)))
