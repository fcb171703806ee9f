"""The templates of a step: the names that they may use, and what renders them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from airflow_agent_provider.agents.identity import StepKey
from airflow_agent_provider.agents.template_names import (
    EarlyNames,
    EarlyRunNames,
    LateNames,
    RunNames,
)
from airflow_agent_provider.hooks.artifacts import ArtifactStore
from airflow_agent_provider.operators.steps import Steps
from airflow_agent_provider.prompts.render import Renderer

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow.sdk import DAG, Context

    from airflow_agent_provider.workspace.workspace import Workspace


class Templated(Protocol):
    """An operator with templates of ours."""

    when: str | None
    prompt_folders: tuple[str, ...]

    @property
    def dag(self) -> DAG: ...

    def get_flat_relative_ids(self, *, upstream: bool = False) -> Collection[str]: ...


class StepTemplates:
    """Renders the templates of one step.

    :param operator: the step.
    :param context: Airflow's context of the task.
    :param step: which step of which run it is.
    :param store: the artifact store.
    """

    def __init__(
        self, operator: Templated, context: Context, step: StepKey, store: ArtifactStore
    ) -> None:
        self._operator = operator
        self._context = context
        self._step = step
        self._store = store

    def wanted(self) -> bool:
        """Return whether the step's ``when`` is true; a step without one is wanted.

        :raises PromptError: if it cannot be evaluated, or is neither true nor false.
        """
        when = self._operator.when
        if not when:
            return True
        renderer = self.renderer(self.names(None))
        return renderer.truth(when, f"'when' of step {self._step.step_id}")

    @property
    def folders(self) -> list[str]:
        """Where template and schema names are looked up, in this order."""
        return list(self._operator.prompt_folders) or [str(self._operator.dag.folder)]

    def renderer(
        self,
        names: Mapping[str, Any],
        texts: dict[str, tuple[str, str | None]] | None = None,
    ) -> Renderer:
        """Return what renders the step's templates.

        :param names: the names that they may use, beside Airflow's own.
        :param texts: templates that are not files, by name, each with the version that was read.
        """
        dag = self._operator.dag
        folders = [*self.folders, str(dag.folder), *_searchpath(dag.template_searchpath)]
        # The sandboxed environment in any case: a native one would turn a prompt into a value.
        environment = dag.get_template_env(force_sandboxed=True)
        airflow = dict(self._context)
        return Renderer(environment, list(dict.fromkeys(folders)), names, airflow, texts)

    def names(self, workspace: Workspace | None) -> dict[str, Any]:
        """Return the names that the step's templates may use.

        :param workspace: the workspace, whose files and commits they may read; None before there is
            one.
        """
        step = self._step
        early: EarlyRunNames = {"id": step.run_id, "branch": step.run_branch}
        names: EarlyNames = {
            "params": self._context["params"],
            "steps": self.steps(),
            "run": early,
            "workflow": {"name": step.dag_id, "step": step.step_id},
        }
        if workspace is None:
            return dict(names)
        run: RunNames = {**early, "base": workspace.base, "start": workspace.start}
        whole: LateNames = {
            **names,
            "run": run,
            "file": lambda path: workspace.read_output(path).decode(errors="replace"),
        }
        return dict(whole)

    def steps(self) -> Steps:
        """Return the results of the steps before this one."""
        upstream = self._operator.get_flat_relative_ids(upstream=True)
        return Steps(set(upstream), self.pull, self._state, self._store)

    def pull(self, step_id: str) -> Any:
        """Return what a step has left in XCom, None if it left nothing."""
        return self._context["ti"].xcom_pull(task_ids=step_id)

    def _state(self, step_id: str) -> str:
        step = self._step
        states = self._context["ti"].get_task_states(
            dag_id=step.dag_id, task_ids=[step_id], run_ids=[step.run_id]
        )
        return str(states.get(step.run_id, {}).get(step_id) or "not run")


def _searchpath(value: Any) -> list[str]:
    if not value:
        return []
    return [value] if isinstance(value, str) else list(value)
