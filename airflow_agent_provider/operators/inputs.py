"""What a step starts from: its repository, the work of earlier steps, and what is asked of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_agent_provider.agents.contract import Access, Sandbox
from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.hooks.artifacts import ArtifactStore, SwapConflict
from airflow_agent_provider.hooks.repository import (
    given_repository,
    repository_access,
    submodule_source,
)
from airflow_agent_provider.operators.judge import Rules
from airflow_agent_provider.operators.templates import StepTemplates
from airflow_agent_provider.sandbox.box import works
from airflow_agent_provider.sandbox.git_box import GitBox
from airflow_agent_provider.workspace.checkout import Checkout
from airflow_agent_provider.workspace.git import PLAIN, GitRunner, GitRunners
from airflow_agent_provider.workspace.repository import Repository, resolve_base
from airflow_agent_provider.workspace.workspace import Upstream, Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_agent_provider.operators.step import StepOperator
    from airflow_agent_provider.settings import Settings

_log = logging.getLogger(__name__)


class StepInputs:
    """What one step starts from.

    :param operator: the step.
    :param context: Airflow's context of the task.
    :param step: which step of which run it is.
    :param store: the artifact store.
    :param settings: the provider's settings.
    """

    def __init__(
        self,
        operator: StepOperator,
        context: Context,
        step: StepKey,
        store: ArtifactStore,
        settings: Settings,
    ) -> None:
        self._operator = operator
        self.step = step
        self._store = store
        self.settings = settings
        self.templates = StepTemplates(operator, context, step, store)

    # --- the repository and the work so far ------------------------------------------------

    @cached_property
    def repository(self) -> Repository:
        """The run's repository, with what git needs to reach it."""
        operator = self._operator
        url, ref, conn_id = operator.repository, operator.ref, operator.repository_conn_id
        if not operator.repository_is_given:
            return repository_access(url, ref, conn_id)
        allowed = self.settings.repositories
        return given_repository(url, ref, conn_id, own=operator.own_repository, allowed=allowed)

    @cached_property
    def base(self) -> str:
        """The commit that the run starts from: the first step to ask decides for all."""
        identity = json.dumps([self.repository.url, self.repository.ref])
        key = f"{self.step.run_prefix}/base-{sha256(identity.encode()).hexdigest()[:12]}.json"
        found = self._store.read(key)
        if found is None:
            commit = resolve_base(self.repository, self.settings.workspaces / "mirrors")
            content = {"url": self.repository.url, "ref": self.repository.ref, "commit": commit}
            try:
                self._store.swap(key, json.dumps(content).encode(), None)
            except SwapConflict:
                found = self._store.read(key)
            else:
                return commit
        if found is None:
            raise InvalidDefinition(f"{self._store.uri(key)} vanished while it was read")
        return str(json.loads(found[0])["commit"])

    def workspace(self, key: AttemptKey, scratch: Path, kept: Upstream | None) -> Workspace:
        """Return the step's workspace, made anew.

        :param key: the attempt.
        :param scratch: a folder for bundles.
        :param kept: the checkpoint to continue from, if any.
        """
        return Workspace.prepare(
            root=self.settings.workspaces,
            attempt=key,
            repository=self.repository,
            base=self.base,
            upstreams=self._upstreams(scratch),
            checkpoint=kept,
            checkout=self._checkout(),
            runners=git_runners(self.settings.confinement.sandbox),
        )

    def _checkout(self) -> Checkout:
        operator = self._operator
        allowed = self.settings.repositories
        source = submodule_source(allowed) if operator.submodules else None
        return Checkout(operator.sparse, source, operator.lfs)

    def _upstreams(self, scratch: Path) -> list[Upstream]:
        found = []
        for step_id, result in self._nearest_results():
            # One that works on another repository is no base of ours.
            if result.get("base") != self.base:
                continue
            uri = result.get("artifacts", {}).get("checkpoint.bundle")
            bundle = self.fetch(uri, scratch / f"{step_id}.bundle")
            found.append(Upstream(step_id, str(result["commit"]), bundle))
        return found

    def _nearest_results(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the steps that come right before this one and left something, with what they left.

        Steps that were skipped are looked through, and so are tasks of other kinds: a hand-written
        DAG may have any.
        """
        from airflow_agent_provider.operators.step import StepOperator

        waiting = sorted(self._operator.upstream_task_ids)
        seen: set[str] = set()
        while waiting:
            task_id = waiting.pop(0)
            if task_id in seen:
                continue
            seen.add(task_id)
            task = self._operator.dag.get_task(task_id)
            result = self.templates.pull(task_id) if isinstance(task, StepOperator) else None
            if isinstance(result, Mapping):
                yield task_id, result
            else:
                waiting += sorted(task.upstream_task_ids)

    def fetch(self, uri: str | None, to: Path) -> Path | None:
        """Write the artifact at ``uri`` to the file ``to``; None stays None."""
        if uri is None:
            return None
        self._store.fetch(self._store.key(uri), to)
        return to

    # --- what its result is held against ---------------------------------------------------

    def rules(self) -> Rules:
        """Return what the step asks of its result."""
        operator = self._operator
        access = Access(operator.access)
        return Rules(
            access=access,
            changes=operator.changes or ("allowed" if access is Access.WRITE else "forbidden"),
            allow=operator.allow_paths,
            deny=operator.deny_paths,
            output_path=operator.output_path,
            output_schema=self.output_schema(),
            verify=operator.verify,
        )

    def output_schema(self) -> Mapping[str, Any] | None:
        """Return the JSON schema of the step's output, if it has one."""
        schema = self._operator.output_schema
        if not isinstance(schema, str):
            return schema
        for folder in self.templates.folders:
            file = Path(folder) / schema
            if file.is_file():
                try:
                    loaded: Mapping[str, Any] = json.loads(file.read_text())
                except ValueError as error:
                    raise InvalidDefinition(f"{file}: the schema is not JSON: {error}") from error
                return loaded
        raise InvalidDefinition(
            f"there is no schema {schema!r} in {', '.join(self.templates.folders)}"
        )


def git_runners(sandbox: Sandbox) -> GitRunners | None:
    """Return what makes the boxes that our own git runs in; None where it runs beside this process.

    :param sandbox: whether there are boxes. Where they do not work, git runs without, whatever the
        agents then do: a hosted agent needs none on this worker.
    """
    return None if sandbox is Sandbox.OFF else _git_runner


def _git_runner(writable: Sequence[Path], readable: Sequence[Path]) -> GitRunner:
    box = GitBox(writable, readable)
    # A box that fails although boxes work here is a failure of its first command.
    if box.starts() or works():
        return box
    _log.warning("Our own git runs without a box: the sandbox does not work on this worker")
    return PLAIN
