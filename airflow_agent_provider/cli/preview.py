"""What a step would start from, without a run: placeholders, and the repository as it is."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_agent_provider.agents.failures import OutputInvalid
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.cli.placeholder import Placeholder, PlaceholderSteps
from airflow_agent_provider.operators.inputs import StepInputs
from airflow_agent_provider.operators.steps import Steps
from airflow_agent_provider.operators.templates import StepTemplates
from airflow_agent_provider.workspace.cleanup import remove_run
from airflow_agent_provider.workspace.repository import resolve_base
from airflow_agent_provider.workspace.workspace import Upstream, Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_agent_provider.hooks.artifacts import ArtifactStore
    from airflow_agent_provider.operators.step import StepOperator
    from airflow_agent_provider.settings import Settings

#: The run's id in what is shown.
RUN_ID = "preview"


class Preview(StepInputs):
    """What a step would start from; nothing is stored, and no step is run.

    The workspace is the repository as a run would find it, made when a template first asks for it.
    What earlier steps would change in it is not there.

    :param operator: the step.
    :param context: what there is of Airflow's context.
    :param store: the artifact store, for results that refer to it.
    :param settings: the provider's settings.
    :param results: the results of earlier steps, by step; a missing one is a placeholder.
    """

    def __init__(
        self,
        operator: StepOperator,
        context: Context,
        store: ArtifactStore,
        settings: Settings,
        results: Mapping[str, Any],
    ) -> None:
        step = StepKey(operator.dag.dag_id, RUN_ID, operator.task_id)
        super().__init__(operator, context, step, store, settings)
        self.templates = _Templates(operator, context, step, store)
        self.templates.preview = self
        self.templates.results = results
        self.earlier: Collection[str] = operator.get_flat_relative_ids(upstream=True)
        self._opened: Workspace | None = None
        # Of its own folder: another preview may go on at the same time.
        self._own = StepKey(step.dag_id, f"{RUN_ID}-{uuid.uuid4().hex}", step.step_id)

    @contextmanager
    def opened(self) -> Iterator[Preview]:
        """Yield these inputs, and remove the workspace in the end."""
        try:
            yield self
        finally:
            if self._opened is not None:
                self._opened.close()
                remove_run(self.settings.workspaces, self._own)

    @cached_property
    def base(self) -> str:
        """The commit that a run would start from now."""
        return resolve_base(self.repository, self.settings.workspaces / "mirrors")

    @property
    def start(self) -> str:
        """The commit that the step would start from; a placeholder after other steps."""
        return Placeholder("run.start") if self.earlier else self.base

    def file(self, path: str) -> str:
        """Return a file of the repository; a placeholder if an earlier step may be to write it.

        :raises OutputInvalid: if it cannot be read, and no step comes before.
        """
        if self._opened is None:
            self._opened = self.workspace(AttemptKey(self._own, 1), Path(), None)
        try:
            return self._opened.read_output(path).decode(errors="replace")
        except OutputInvalid:
            if not self.earlier:
                raise
            return Placeholder(f"file({path!r})")

    def _upstreams(self, scratch: Path) -> list[Upstream]:
        return []


class _Templates(StepTemplates):
    """The templates of a step, with what a preview knows.

    :ivar preview: the step's inputs.
    :ivar results: the results of earlier steps, by step.
    """

    preview: Preview
    results: Mapping[str, Any]

    def names(self, workspace: Workspace | None) -> dict[str, Any]:
        """Return the names that the step's templates may use.

        :param workspace: not looked at; the preview has its own.
        """
        names = super().names(None)
        return {**names, "run": _Run(names["run"], self.preview), "file": self.preview.file}

    def steps(self) -> Steps:
        """Return the results of the steps before this one, as given or as placeholders."""
        return PlaceholderSteps(set(self.preview.earlier), self.pull, self._state, self._store)

    def pull(self, step_id: str) -> Any:
        """Return the result of a step, as it was given."""
        return self.results.get(step_id)


class _Run(dict[str, Any]):
    """What templates know of the run; its commits are looked up when they are asked for."""

    def __init__(self, known: Mapping[str, Any], preview: Preview) -> None:
        super().__init__(known)
        self._preview = preview

    def __missing__(self, name: str) -> Any:
        if name in ("base", "start"):
            return getattr(self._preview, name)
        raise KeyError(name)
