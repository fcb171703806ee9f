"""One attempt of an agent step: what it starts from, what it keeps while it works, what it leaves.

The main path is :meth:`Attempt.run`: begin, let the agent work, judge, finish. How the agent works
is up to the subclass: on this worker (:mod:`.local`) or at its vendor (:mod:`.hosted`).
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.sdk.exceptions import AirflowRuntimeError, TaskDeferred

from airflow_agent_provider.agents.checkpoint import Checkpoint, Finished, Spent, read_checkpoint
from airflow_agent_provider.agents.contract import Access, AgentResult, Limits, Session, Usage
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
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.agents.outcome import Outcome, check_schema, parse_output
from airflow_agent_provider.agents.processes import end_at_home
from airflow_agent_provider.hooks.agent import AgentHook, get_agent_hook
from airflow_agent_provider.hooks.artifacts import open_store
from airflow_agent_provider.hooks.lease import Lease
from airflow_agent_provider.operators.inputs import StepInputs
from airflow_agent_provider.operators.record import Record, redact_values, refuse_secrets
from airflow_agent_provider.operators.steps import inline_or_reference
from airflow_agent_provider.settings import load_settings
from airflow_agent_provider.workspace.cleanup import step_folder
from airflow_agent_provider.workspace.workspace import Upstream, Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_agent_provider.operators.agent import AgentOperator
    from airflow_agent_provider.prompts.render import Prompt

#: The key of the checkpoint in Airflow's task state store, which a task reads only of itself.
CHECKPOINT = "checkpoint"
#: The XCom key under which a failed attempt leaves its failure class and reason.
FAILURE = "failure"

_CONTINUE = """\
An earlier attempt at this step did not succeed: {problem}
What it had changed by then is in the working tree. Look at what is there, do not redo what is done,
and finish what is missing. The step:

"""

#: What a checkpoint takes over from the one before it, unless it has its own.
_CARRIED_OVER = {"commit", "bundle", "session_files", "hosted_agent", "hosted_run"}


@dataclass(frozen=True)
class Work:
    """What the agent answered, and what that took.

    :param result: the agent's own account.
    :param usage: tokens and cost of this attempt.
    """

    result: AgentResult
    usage: Usage


class Attempt(ABC):
    """One attempt of an agent step.

    :param operator: the step.
    :param context: Airflow's context of the task.
    """

    #: Whether the agent works at its vendor, on a clone of its own.
    hosted: ClassVar[bool] = False

    def __init__(self, operator: AgentOperator, context: Context) -> None:
        ti = context["ti"]
        self.operator = operator
        self.context = context
        self.log = operator.log
        self.settings = load_settings()
        step = StepKey(
            ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index
        )
        self.key = AttemptKey(step, ti.try_number)
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
        self.inputs = StepInputs(operator, context, step, self.store, self.settings)
        self.record = Record(self.store, self.key)
        self.spent_here = Usage()
        self.session: Session | None = None
        self.model: str | None = None
        self._resources = ExitStack()
        self._workspace: Workspace | None = None
        self._prompt: Prompt | None = None
        self._checkpoint: Checkpoint | None = None
        #: Hexadecimal digest of the resolved prompt.
        self.prompt_sha256 = ""
        #: What the attempts before this one took.
        self._earlier = Spent()
        self._written = 0

    # --- the main path ---------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run the attempt; return the step's XCom.

        :raises AgentFailure: with the work kept and the outcome stored.
        """
        with self._resources:
            try:
                self.begin()
                work = self._finished_before() or self.work()
                return self.finish(work)
            except TaskDeferred:
                raise
            except BaseException as error:
                failure = _classified(error)
                self.fail(failure)
                if failure is error or not isinstance(error, Exception):
                    raise
                raise failure from error
            finally:
                self._release()

    def run_failed(self, failure: AgentFailure) -> NoReturn:
        """Record an attempt that failed while nobody was there, and raise ``failure``."""
        try:
            self.lease.acquire(wait=2 * self.settings.lease_ttl)
            self.fail(failure)
        finally:
            self._release()
        raise failure

    @abstractmethod
    def work(self) -> Work:
        """Let the agent work until it says that it is done."""

    def begin(self) -> None:
        """Take the step's lease, make the workspace and the prompt, find the checkpoint."""
        self.lease.acquire(wait=2 * self.settings.lease_ttl)
        self._resources.enter_context(self.lease.keep(self.on_lost))
        self._prepare(checkpoint=None)
        self._prompt = self._make_prompt()
        self.prompt_sha256 = self._prompt.sha256
        self.operator.prompt = self._prompt.text
        self._checkpoint = self._find_checkpoint()
        if self._checkpoint:
            self._earlier = self._checkpoint.spent
        if self._checkpoint and self._checkpoint.commit:
            self._prepare(self._checkpoint)

    def finish(self, work: Work) -> dict[str, Any]:
        """Judge the work, commit it to the run's branch and store what the step leaves.

        :raises AgentFailure: if the judgement is that the step failed.
        """
        answer = work.result
        commit = self.workspace.commit_step(self._subject(), self.trailers())
        output = redact_values(self._judge(answer, commit))
        finished = Finished(
            message=answer.message, structured=answer.structured, model=answer.model
        )
        self._keep(commit, "", finished=finished)
        self.record.put_text("changes.patch", _text(self.workspace.patch(commit)))
        stored = output if isinstance(output, str) else json.dumps(output, indent=2)
        uri = self.record.put_text(self._output_name(), stored)
        branch = self._push(commit)
        self._write_outcome("success", commit=commit, branch=branch)
        return self._xcom(inline_or_reference(output, uri), commit, branch)

    def fail(self, failure: AgentFailure) -> None:
        """Keep the work and tell why the attempt failed; never raises.

        An attempt that was superseded writes nothing more.
        """
        self.log.error("%s", failure)
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
        """End the agent: the step belongs to a newer attempt, or the supervisor is gone."""
        self.log.error("This attempt ends itself: %s", lost.reason)

    # --- what it starts from ---------------------------------------------------------------

    @property
    def workspace(self) -> Workspace:
        """The workspace, once it is made."""
        if self._workspace is None:
            raise RuntimeError("the workspace is not made yet")
        return self._workspace

    @property
    def prompt_text(self) -> str:
        """The resolved prompt."""
        if self._prompt is None:
            raise RuntimeError("the prompt is not made yet")
        return self._prompt.text

    @property
    def continuing_prompt(self) -> str:
        """The prompt, led by what the agent must know of the attempt that it continues."""
        if self._checkpoint is None:
            return self.prompt_text
        problem = self._checkpoint.problem or "Its process ended before it was done."
        return _CONTINUE.format(problem=problem) + self.prompt_text

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint that this attempt continues from, or has written since."""
        return self._checkpoint

    @cached_property
    def hook(self) -> AgentHook:
        """The agent's hook."""
        return get_agent_hook(self.operator.agent, self.operator.agent_conn_id)

    @cached_property
    def scratch(self) -> Path:
        """A folder that goes with the attempt."""
        folder = tempfile.TemporaryDirectory(prefix="agents-", ignore_cleanup_errors=True)
        self._resources.callback(folder.cleanup)
        return Path(folder.name)

    def _make_prompt(self) -> Prompt:
        prompt = self.inputs.prompt(self.workspace, hosted=self.hosted)
        self.record.put_text("prompt.md", prompt.text)
        return prompt

    def _prepare(self, checkpoint: Checkpoint | None) -> None:
        kept = None
        if not end_at_home(step_folder(self.settings.workspaces, self.key.step) / "home"):
            raise Interrupted("processes of an earlier attempt at this step do not end")
        if checkpoint and checkpoint.commit:
            bundle = self.inputs.fetch(checkpoint.bundle, self.scratch / "checkpoint.bundle")
            kept = Upstream(self.key.step.step_id, checkpoint.commit, bundle)
        self._workspace = self.inputs.workspace(self.key, self.scratch, kept)

    def _find_checkpoint(self) -> Checkpoint | None:
        found = read_checkpoint(self.context["task_state_store"].get(CHECKPOINT))
        if found is None:
            return None
        reason = found.mismatch(self._new_checkpoint())
        if reason is None and found.agent != self.operator.agent:
            # Another agent continues the work, but not the other one's conversation.
            found = found.model_copy(update={"session": None, "session_files": {}})
        if reason:
            self.log.info("The step starts afresh: %s since attempt %d", reason, found.attempt)
            return None
        if found.attempt < self.key.number:
            self._tell_interrupted(found)
        return found

    def _tell_interrupted(self, found: Checkpoint) -> None:
        before = AttemptKey(self.key.step, found.attempt)
        if not self.store.exists(f"{before.prefix}/outcome.json"):
            self.log.warning(
                "Interrupted: attempt %d ended without a word; its process was killed",
                found.attempt,
            )
        self.log.info(
            "The step continues from the checkpoint of attempt %d (commit %s, session %s)",
            found.attempt,
            found.commit or found.start,
            found.session or found.hosted_run or "none",
        )

    def _finished_before(self) -> Work | None:
        """Return the answer that an attempt before this one got, and could not tell any more."""
        if self._checkpoint is None or self._checkpoint.finished is None:
            return None
        finished = self._checkpoint.finished
        self.log.info("The agent's work was finished by attempt %d", self._checkpoint.attempt)
        if self._checkpoint.session:
            self.session = Session(self.operator.agent, self._checkpoint.session)
        self.model = finished.model
        return Work(
            AgentResult("completed", finished.message, finished.structured, self.session), Usage()
        )

    # --- what it keeps while it works ------------------------------------------------------

    def save_checkpoint(self, note: str, **values: Any) -> None:
        """Keep the work and the session, so that a later attempt can continue from here.

        :param note: what was just reached, for the commit's subject.
        :param values: more fields of the checkpoint.
        :raises Superseded: if a newer attempt has the step.
        """
        self._written += 1
        commit = self.workspace.checkpoint(self.trailers(), note)
        self._keep(commit, f"checkpoints/{self._written:04d}/", **values)

    def session_files(self) -> Mapping[str, Path]:
        """Return the files that resume the agent's session elsewhere, by their path."""
        return {}

    def _keep(self, commit: str | None, folder: str, **values: Any) -> None:
        """Store the work and the session below ``folder``, then point the checkpoint there."""
        before = self._checkpoint
        kept: dict[str, Any] = {}
        if before:
            kept = before.model_dump(include=_CARRIED_OVER)
        if commit:
            refuse_secrets(self.workspace.patch(commit), "what the agent changed")
            kept |= {"commit": commit, "bundle": self._bundle(commit, f"{folder}checkpoint.bundle")}
        files = self.session_files()
        if files:
            kept["session_files"] = self.record.put_session(files, f"{folder}session/")
        checkpoint = self._new_checkpoint().model_copy(update=kept | values)
        self.lease.check()
        self._checkpoint = checkpoint
        self.context["task_state_store"].set(CHECKPOINT, checkpoint.model_dump(mode="json"))

    def _new_checkpoint(self) -> Checkpoint:
        before = self._checkpoint
        total = Usage(**self._earlier.model_dump()) + self.spent_here
        return Checkpoint(
            attempt=self.key.number,
            clear_number=self.clear_number,
            started=self.started,
            prompt_sha256=self.prompt_sha256,
            start=self.workspace.start,
            item_sha256=self._item_sha256(),
            agent=self.operator.agent,
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
        item = json.dumps(self.operator.prompt_context, sort_keys=True, default=str)
        return hashlib.sha256(item.encode()).hexdigest()

    def trailers(self) -> dict[str, str]:
        """Return the git trailers of this attempt's commits."""
        step = self.key.step
        trailers = {
            "Agents-Workflow": step.dag_id,
            "Agents-Run": step.run_id,
            "Agents-Step": step.step_id,
            "Agents-Attempt": str(self.key.number),
            "Agents-Agent": self.operator.agent,
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

    def _judge(self, result: AgentResult, commit: str) -> Any:
        changed = self.workspace.changed_paths(commit)
        if self.operator.access == Access.READ_ONLY.value and changed:
            raise PolicyViolation(
                f"the step is read-only, but the agent changed {', '.join(changed[:10])}"
            )
        schema = self.inputs.output_schema()
        path = self.operator.output_path
        if path:
            return parse_output(self.workspace.read_output(path), path, schema)
        if schema is None:
            return result.message
        answer = result.structured
        if answer is None:
            content = result.message.encode()
            return parse_output(content, "that the agent gave as its final message", schema)
        check_schema(answer, schema, "the agent's final message")
        return answer

    def _output_name(self) -> str:
        path = self.operator.output_path
        return f"output/{path}" if path else "output/message.md"

    def _subject(self) -> str:
        return f"{self.key.step.step_id}: {self.key.step.dag_id}"

    def _push(self, commit: str) -> str | None:
        """Push the run's branch where it shall be pushed; return its name if it was."""
        if not self.inputs.repository.url or not (self.hosted or self.settings.push == "always"):
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
        values: dict[str, Any] = {"problem": str(failure), "resumable": failure.resumes_session}
        if isinstance(failure, OutputInvalid | VerificationFailed) and self._checkpoint:
            values["rejected_run"] = self._checkpoint.hosted_run
        self._keep(commit, "", **values)

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
            agent=self.operator.agent,
            model=self.model,
            session=self._session_id(),
            commit=commit or kept,
            branch=branch,
            output_path=self.operator.output_path,
            usage=self.spent_here.to_dict(),
            cost=self.spent_here.cost,
            artifacts=dict(self.record.artifacts),
            started=self.started,
            ended=datetime.now(UTC),
            prompt_sha256=self.prompt_sha256 or None,
            prompt_sources=[vars(source) for source in sources],
        )
        self.lease.check()
        self.record.put("outcome.json", outcome.to_json())

    def _session_id(self) -> str | None:
        if self.session:
            return self.session.id
        return self._checkpoint.session if self._checkpoint else None

    def _xcom(self, output: Any, commit: str, branch: str | None) -> dict[str, Any]:
        total = self._checkpoint.spent if self._checkpoint else Spent()
        usage = Usage(**total.model_dump())
        return {
            "status": "success",
            "output": output,
            "output_path": self.operator.output_path,
            "commit": commit,
            "base": self.workspace.base,
            "branch": branch,
            "agent": self.operator.agent,
            "model": self.model,
            "session": self._session_id(),
            "attempt": self.key.number,
            "usage": usage.to_dict(),
            "cost": usage.cost,
            "artifacts": self.record.main_artifacts,
        }

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
