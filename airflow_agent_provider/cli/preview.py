"""What a step would start from, without a run: placeholders, and the repository as it is."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_agent_provider.agents.failures import OutputInvalid
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.cli.placeholder import Placeholder, PlaceholderResult
from airflow_agent_provider.operators.inputs import StepInputs, git_runners
from airflow_agent_provider.workspace.cleanup import remove_run
from airflow_agent_provider.workspace.repository import resolve_base
from airflow_agent_provider.workspace.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_agent_provider.hooks.artifacts import ArtifactStore
    from airflow_agent_provider.operators.step import StepOperator
    from airflow_agent_provider.settings import Settings

#: The run's id in what is shown.
RUN_ID = "preview"


class Preview(StepInputs):
    """What a step would start from; nothing is stored, and no step is run.

    The workspace is the repository as the run would find it, made when a template first asks for
    it. What earlier steps would change in it is not there.

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
        self._results = results
        self._upstream_ids = operator.get_flat_relative_ids(upstream=True)
        self._workspace: Workspace | None = None
        # Of its own folder: another preview may go on at the same time.
        self._own = StepKey(step.dag_id, f"{RUN_ID}-{uuid.uuid4().hex}", step.step_id)

    @contextmanager
    def opened(self) -> Iterator[Preview]:
        """Yield these inputs, and remove the workspace in the end."""
        try:
            yield self
        finally:
            if self._workspace is not None:
                self._workspace.close()
                remove_run(self.settings.workspaces, self._own)

    @cached_property
    def base(self) -> str:
        """The commit that a run would start from now."""
        return resolve_base(self.repository, self.settings.workspaces / "mirrors")

    def names(self, workspace: Workspace | None) -> dict[str, Any]:
        """Return the names that the step's templates may use.

        :param workspace: not looked at; the preview has its own.
        """
        names = super().names(None)
        return {**names, "run": _Run(names["run"], self), "file": self._file}

    def start(self) -> str:
        """Return the commit that the step would start from; a placeholder after other steps."""
        return Placeholder("run.start") if self._upstream_ids else self.base

    def _file(self, path: str) -> str:
        if self._workspace is None:
            self._workspace = Workspace.prepare(
                root=self.settings.workspaces,
                attempt=AttemptKey(self._own, 1),
                repository=self.repository,
                base=self.base,
                runners=git_runners(self.settings.confinement.sandbox),
            )
        try:
            return self._workspace.read_output(path).decode(errors="replace")
        except OutputInvalid:
            if not self._upstream_ids:
                raise
            # An earlier step may be to write it.
            return Placeholder(f"file({path!r})")

    def _pull(self, step_id: str) -> Any:
        given = self._results.get(step_id)
        return PlaceholderResult(step_id) if given is None else given


class _Run(dict[str, Any]):
    """What templates know of the run; its commits are looked up when they are asked for."""

    def __init__(self, known: Mapping[str, Any], preview: Preview) -> None:
        super().__init__(known)
        self._preview = preview

    def __missing__(self, name: str) -> Any:
        if name == "base":
            return self._preview.base
        if name == "start":
            return self._preview.start()
        raise KeyError(name)
