"""One attempt of a step: what it starts from, what it keeps while it works, what it leaves.

The main path is :meth:`Attempt.run`: begin, do the work until it is found good, finish. Who works
is the matter of a subclass: an agent (:mod:`.agent_attempt`), a command (:mod:`.command_attempt`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowRuntimeError, AirflowSkipException, TaskDeferred

from airflow_agent_provider.agents.checkpoint import Checkpoint, Finished, Spent, read_checkpoint
from airflow_agent_provider.agents.contract import (
    AgentResult,
    Confinement,
    Limits,
    Network,
    Session,
    Usage,
)
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    Interrupted,
    OutputInvalid,
    PolicyViolation,
    Superseded,
    TimedOut,
    VerificationFailed,
    failure_to_dict,
)
from airflow_agent_provider.agents.identity import AttemptKey
from airflow_agent_provider.agents.outcome import Outcome
from airflow_agent_provider.agents.processes import end_at_home
from airflow_agent_provider.agents.template_names import StepValues
from airflow_agent_provider.hooks.artifacts import open_store
from airflow_agent_provider.hooks.lease import Lease
from airflow_agent_provider.operators.checks import Checks
from airflow_agent_provider.operators.inputs import StepInputs
from airflow_agent_provider.operators.judge import Verdict, judge, output_file
from airflow_agent_provider.operators.record import (
    Record,
    attempt_key,
    redact_values,
    refuse_secrets,
)
from airflow_agent_provider.operators.retry import plain_delay
from airflow_agent_provider.operators.steps import inline_or_reference
from airflow_agent_provider.operators.work import Work
from airflow_agent_provider.prompts.render import Prompt
from airflow_agent_provider.settings import load_settings
from airflow_agent_provider.workspace.cleanup import remove_tree, step_folder
from airflow_agent_provider.workspace.workspace import Upstream, Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_agent_provider.operators.step import StepOperator

#: The key of the checkpoint in Airflow's task state store, which a task reads only of itself.
CHECKPOINT = "checkpoint"
#: The attempt's own account, which the mirror reads.
OUTCOME = "outcome.json"
#: The XCom key under which a failed attempt leaves its failure class and reason.
FAILURE = "failure"

#: What a checkpoint takes over from the one before it, unless it has its own.
_CARRIED_OVER = {"commit", "bundle", "session_files", "hosted_agent", "hosted_run", "repairs"}


class Attempt(ABC):
    """One attempt of a step.

    :param operator: the step.
    :param context: Airflow's context of the task.
    """

    def __init__(self, operator: StepOperator, context: Context) -> None:
        self.operator = operator
        self.context = context
        self.log = operator.log
        self.settings = load_settings()
        self.key = attempt_key(context["ti"])
        self.clear_number = context["dag_run"].clear_number or 0
        self.started = datetime.now(UTC)
        self.limits = Limits(operator.timeout.total_seconds(), operator.stall.total_seconds())
        self.store = open_store(self.settings.artifacts, self.settings.aws_conn_id)
        self.lease = Lease(
            self.store,
            self.key,
            owner=f"{socket.gethostname()}:{os.getpid()}",
            ttl=self.settings.lease_ttl,
        )
        self.inputs = StepInputs(operator, context, self.key.step, self.store, self.settings)
        self.record = Record(self.store, self.key)
        self.session: Session | None = None
        self.model: str | None = None
        #: Whether the agent's program ran inside the box; None while, or where, none ran here.
        self.boxed: bool | None = None
        self._resources = ExitStack()
        self._workspace: Workspace | None = None
        self._prompt: Prompt | None = None
        self._checkpoint: Checkpoint | None = None
        #: Hexadecimal digest of what is to be done, resolved.
        self.prompt_sha256 = ""
        self._written = 0

    # --- what a kind of step is ------------------------------------------------------------

    @property
    @abstractmethod
    def who(self) -> str:
        """Who works, as commits, checkpoints and outcomes name it."""

    @abstractmethod
    def _resolve(self) -> Prompt:
        """Return what is to be done, now that the workspace and the earlier results are there."""

    @abstractmethod
    def _work(self) -> Work:
        """Do it until what is left is found good.

        :raises AgentFailure: if it is not.
        """

    @abstractmethod
    def stop(self) -> None:
        """End the work; callable from any thread."""

    def _continued(self, found: Checkpoint | None) -> Checkpoint | None:
        """Return the checkpoint to continue from, given the one that fits the step."""
        return found

    def _read_session(self) -> dict[str, bytes]:
        """Return what resumes the conversation elsewhere; here there is none."""
        return {}

    @property
    def spent_here(self) -> Usage:
        """What this attempt took: tokens, and USD. What is no agent takes neither."""
        return Usage(cost=0.0)

    @property
    def spent(self) -> Usage:
        """What the step has taken by now, all attempts together."""
        return self.spent_here

    @property
    def pushes(self) -> bool:
        """Whether the run's branch is pushed when the step has succeeded."""
        return self.settings.push == "always"

    # --- the main path ---------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run the attempt; return the step's XCom.

        :raises AgentFailure: with the work kept and the outcome stored.
        """
        with self._resources:
            try:
                self.begin()
                work = self._finished_before() or self._work()
                return self.finish(work)
            except (TaskDeferred, AirflowSkipException):
                raise
            except BaseException as error:
                failure = _classified(error)
                self.fail(failure)
                if failure is error:
                    raise
                if not isinstance(error, Exception):
                    # Nobody asks the retry policy, which else says what went wrong.
                    self.log.error("%s", failure.line)
                    raise
                raise failure from error
            finally:
                self._release()

    def begin(self) -> None:
        """Take the step's lease, make the workspace, resolve what to do, find the checkpoint."""
        self.lease.acquire(wait=2 * self.settings.lease_ttl)
        self._resources.enter_context(self.lease.keep(self.on_lost))
        if not self.inputs.templates.wanted():
            raise AirflowSkipException(f"{self.operator.when} is false")
        self._prepare(checkpoint=None)
        self._prompt = self._resolve()
        self.prompt_sha256 = self._prompt.sha256
        self._checkpoint = self._continued(self._find_checkpoint())
        if self._checkpoint and self._checkpoint.commit:
            self._prepare(self._checkpoint)

    def judge(self, answer: AgentResult) -> Verdict:
        """Return the verdict on what was left by now.

        :raises AgentFailure: if it is not what the step asks for; an agent can be told and mend it.
        """
        commit = self.workspace.commit_step(self._subject(), self.trailers())
        verdict = judge(self.inputs.rules(), self.workspace, commit, answer, self.checks.verify)
        return replace(verdict, output=redact_values(verdict.output))

    def finish(self, work: Work) -> dict[str, Any]:
        """Store what the step leaves, and commit it to the run's branch.

        :raises AgentFailure: if that is not possible.
        """
        answer, commit, output = work.result, work.verdict.commit, work.verdict.output
        finished = Finished(
            message=answer.message, structured=answer.structured, model=answer.model
        )
        self._keep(commit, "", self._read_session(), finished=finished)
        self.record.put_text("changes.patch", _text(self.workspace.patch(commit)))
        stored = output if isinstance(output, str) else json.dumps(output, indent=2)
        uri = self.record.put_text(output_file(self.operator.output_path), stored)
        branch = self._push(commit)
        self._write_outcome("success", commit=commit, branch=branch)
        return self._xcom(inline_or_reference(output, uri), commit, branch)

    def fail(self, failure: AgentFailure) -> None:
        """Keep the work and tell why the attempt failed; never raises.

        An attempt that was superseded writes nothing more.
        """
        if isinstance(failure, Superseded):
            return
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._keep_work(failure),
            lambda: self._write_outcome("failed", failure=failure),
            lambda: self.context["ti"].xcom_push(
                key=FAILURE, value=redact_values(failure_to_dict(failure))
            ),
        )
        for step in steps:
            try:
                step()
            except Exception as error:
                # The failure that ended the attempt is the one to tell; this one is beside it.
                self.log.warning("The failed attempt could not be recorded in full: %s", error)

    def on_lost(self, lost: Interrupted) -> None:
        """End the work: the step belongs to a newer attempt, or the supervisor is gone."""
        self.log.error("This attempt ends itself: %s", lost.reason)

    # --- what it starts from ---------------------------------------------------------------

    @property
    def workspace(self) -> Workspace:
        """The workspace, once it is made."""
        if self._workspace is None:
            raise RuntimeError("the workspace is not made yet")
        return self._workspace

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint that this attempt continues from, or has written since."""
        return self._checkpoint

    @cached_property
    def checks(self) -> Checks:
        """Runs the step's commands."""
        return Checks(self)

    @cached_property
    def scratch(self) -> Path:
        """A folder that goes with the attempt, or with the next one if this one is killed."""
        earlier = step_folder(self.settings.workspaces, self.key.step) / "scratch"
        remove_tree(earlier)
        folder = earlier / str(self.key.number)
        folder.mkdir(parents=True, mode=0o700)
        self._resources.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _prepare(self, checkpoint: Checkpoint | None) -> None:
        kept = None
        if not end_at_home(step_folder(self.settings.workspaces, self.key.step) / "home"):
            raise Interrupted("processes of an earlier attempt at this step do not end")
        if checkpoint and checkpoint.commit:
            bundle = self.inputs.fetch(checkpoint.bundle, self.scratch / "checkpoint.bundle")
            kept = Upstream(self.key.step.step_id, checkpoint.commit, bundle)
        if self._workspace is not None:
            self._workspace.close()
        workspace = self.inputs.workspace(self.key, self.scratch, kept)
        self._workspace = self._resources.enter_context(workspace)

    def _stored_checkpoint(self) -> Checkpoint | None:
        return read_checkpoint(self.context["task_state_store"].get(CHECKPOINT))

    def _find_checkpoint(self) -> Checkpoint | None:
        found = self._stored_checkpoint()
        self._tell_interrupted()
        if found is None:
            return None
        reason = found.mismatch(self._new_checkpoint())
        if reason:
            self.log.info("The step starts afresh: %s since attempt %d", reason, found.attempt)
            return None
        self.log.info(
            "The step continues from the checkpoint of attempt %d (commit %s, session %s)",
            found.attempt,
            found.commit or found.start,
            found.session or found.hosted_run or "none",
        )
        return found

    def _tell_interrupted(self) -> None:
        """Tell of the attempt before this one, if nobody could: its process was killed."""
        number = self.key.number - 1
        if number < 1 or self.store.exists(f"{AttemptKey(self.key.step, number).prefix}/{OUTCOME}"):
            return
        self.log.warning(
            "Interrupted: attempt %d ended without a word, its process was killed; retry %d of %d, "
            "%s",
            number,
            number,
            self.context["ti"].max_tries,
            plain_delay(self.context, number),
        )

    def _finished_before(self) -> Work | None:
        """Return the answer that an attempt before this one got, and could not tell any more."""
        if self._checkpoint is None or self._checkpoint.finished is None:
            return None
        finished = self._checkpoint.finished
        self.log.info("The work was finished by attempt %d", self._checkpoint.attempt)
        if self._checkpoint.session:
            self.session = Session(self._checkpoint.agent, self._checkpoint.session)
        self.model = finished.model
        answer = AgentResult("completed", finished.message, finished.structured, self.session)
        return Work(answer, self.judge(answer))

    # --- what it keeps while it works ------------------------------------------------------

    def save_checkpoint(self, note: str, **values: Any) -> None:
        """Keep the work and the session, so that a later attempt can continue from here.

        :param note: what was just reached, for the commit's subject.
        :param values: more fields of the checkpoint.
        :raises Superseded: if a newer attempt has the step.
        """
        self._written += 1
        # The conversation first, as the agent works on: one that knows of work which the commit
        # lacks would never do it again.
        session = self._read_session()
        commit = self.workspace.checkpoint(self.trailers(), note)
        self._keep(commit, f"checkpoints/{self._written:04d}/", session, **values)

    def confinement(self, network: str) -> Confinement:
        """Return the bounds that programs of this attempt are held in.

        :param network: what they reach, ``model`` or ``open``.
        """
        bounds = self.settings.confinement
        seen = (*bounds.read_only_paths, *self.workspace.object_folders)
        return replace(bounds, network=Network(network), read_only_paths=seen)

    def _keep(
        self, commit: str | None, folder: str, session: Mapping[str, bytes], **values: Any
    ) -> None:
        """Store the work and the session below ``folder``, then point the checkpoint there."""
        before = self._checkpoint
        kept: dict[str, Any] = {}
        if before:
            kept = before.model_dump(include=_CARRIED_OVER)
        if commit:
            refuse_secrets(self.workspace.patch(commit), "what the step changed")
            kept |= {"commit": commit, "bundle": self._bundle(commit, f"{folder}checkpoint.bundle")}
        if session:
            kept["session_files"] = self.record.put_session(session, f"{folder}session/")
        checkpoint = self._new_checkpoint().model_copy(update=kept | values)
        self.lease.check()
        self._checkpoint = checkpoint
        self.context["task_state_store"].set(CHECKPOINT, checkpoint.model_dump(mode="json"))

    def _new_checkpoint(self) -> Checkpoint:
        before = self._checkpoint
        total = self.spent
        return Checkpoint(
            attempt=self.key.number,
            clear_number=self.clear_number,
            started=self.started,
            prompt_sha256=self.prompt_sha256,
            start=self.workspace.start,
            item_sha256=self._item_sha256(),
            agent=self.who,
            session=self.session.id if self.session else (before.session if before else None),
            spent=Spent(
                input_tokens=total.input_tokens,
                cached_tokens=total.cached_tokens,
                output_tokens=total.output_tokens,
                reasoning_tokens=total.reasoning_tokens,
                cost=total.cost,
            ),
        )

    def _item_sha256(self) -> str:
        if self.key.step.map_index < 0:
            return ""
        item = json.dumps(self.operator.item, sort_keys=True, default=str)
        return hashlib.sha256(item.encode()).hexdigest()

    def trailers(self) -> dict[str, str]:
        """Return the git trailers of this attempt's commits."""
        step = self.key.step
        trailers = {
            "Agents-Workflow": step.dag_id,
            "Agents-Run": step.run_id,
            "Agents-Step": step.step_id,
            "Agents-Attempt": str(self.key.number),
            "Agents-Agent": self.who,
        }
        if self.session:
            trailers["Agents-Session"] = self.session.id
        return trailers

    def _bundle(self, commit: str, name: str) -> str | None:
        file = self.scratch / f"{commit}.bundle"
        if not self.workspace.bundle(commit, file):
            return None
        return self.record.put(name, file)

    # --- what it leaves --------------------------------------------------------------------

    def _subject(self) -> str:
        return f"{self.key.step.step_id}: {self.key.step.dag_id}"

    def _push(self, commit: str) -> str | None:
        """Push the run's branch where it shall be pushed; return its name if it was."""
        if not self.inputs.repository.url or not self.pushes:
            return None
        branch = self.key.step.run_branch
        downstream = self.operator.get_flat_relative_ids(upstream=False)
        self.workspace.push(commit, branch, replaces={self.key.step.step_id, *downstream})
        return branch

    def _keep_work(self, failure: AgentFailure) -> None:
        if self._workspace is None or self._prompt is None or isinstance(failure, PolicyViolation):
            return
        note = f"kept after {failure.failure_class}"
        commit = self.workspace.checkpoint(self.trailers(), note)
        values: dict[str, Any] = {
            "problem": str(failure),
            "failure_class": failure.failure_class,
            "resumable": failure.resumes_session,
        }
        if isinstance(failure, OutputInvalid | VerificationFailed) and self._checkpoint:
            values["rejected_run"] = self._checkpoint.hosted_run
        self._keep(commit, "", self._read_session(), **values)

    def _write_outcome(
        self,
        state: str,
        *,
        failure: AgentFailure | None = None,
        commit: str | None = None,
        branch: str | None = None,
    ) -> None:
        step = self.key.step
        kept = self._checkpoint.commit if self._checkpoint else None
        told = redact_values(failure_to_dict(failure)) if failure else None
        sources = self._prompt.sources if self._prompt else ()
        outcome = Outcome(
            dag_id=step.dag_id,
            run_id=step.run_id,
            step=step.step_id,
            map_index=step.map_index,
            attempt=self.key.number,
            state=state,
            failure=told,
            agent=self.who,
            model=self.model,
            boxed=self.boxed,
            session=self._session_id(),
            commit=commit or kept,
            branch=branch,
            output_path=self.operator.output_path,
            usage=self.spent_here.to_dict(),
            cost=self.spent_here.cost,
            artifacts=self._artifacts(),
            started=self.started,
            ended=datetime.now(UTC),
            prompt_sha256=self.prompt_sha256 or None,
            prompt_sources=[vars(source) for source in sources],
        )
        self.lease.check()
        self.record.put(OUTCOME, outcome.to_json())

    def _artifacts(self) -> dict[str, str]:
        """Return the artifacts' URIs by name; the bundle is the one to continue from."""
        kept = self._checkpoint.bundle if self._checkpoint else None
        return dict(self.record.artifacts) | ({"checkpoint.bundle": kept} if kept else {})

    def _session_id(self) -> str | None:
        if self.session:
            return self.session.id
        return self._checkpoint.session if self._checkpoint else None

    def _xcom(self, output: Any, commit: str, branch: str | None) -> dict[str, Any]:
        total = self._checkpoint.spent if self._checkpoint else Spent()
        usage = Usage(**total.model_dump())
        values: StepValues = {
            "status": "success",
            "output": output,
            "output_path": self.operator.output_path,
            "commit": commit,
            "base": self.workspace.base,
            "branch": branch,
            "agent": self.who,
            "model": self.model,
            "session": self._session_id(),
            "attempt": self.key.number,
            "usage": usage.to_dict(),
            "cost": usage.cost,
            "artifacts": self.record.main_artifacts,
        }
        return dict(values)

    def _release(self) -> None:
        try:
            self.lease.release()
        except Exception as error:
            # It expires by itself; the next attempt waits that long.
            self.log.warning("The step's lease could not be released: %s", error)


#: What Airflow answers an attempt that it no longer counts: it is retried, or was cleared.
_GIVEN_UP = (404, 409, 410)


def _classified(error: BaseException) -> AgentFailure:
    if isinstance(error, AgentFailure):
        return error
    if isinstance(error, AirflowRuntimeError):
        status = (error.error.detail or {}).get("status_code")
        if status in _GIVEN_UP:
            return Superseded("Airflow has given up this attempt", raw=str(error))
    if type(error).__name__ == "AirflowTaskTimeout":
        return TimedOut("Airflow ended the task at its execution_timeout", raw=str(error))
    if not isinstance(error, Exception):
        return Interrupted(f"the task was ended by {type(error).__name__}", raw=str(error))
    return AgentFailed(f"unexpected {type(error).__name__}", raw=str(error))


def _text(content: bytes) -> str:
    return content.decode(errors="replace")
