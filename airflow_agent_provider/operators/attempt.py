"""One attempt of an agent step: what it starts from, what it keeps while it works, what it leaves.

The main path is :meth:`Attempt.run`: begin, let an agent work until its work is found good, finish.
How an agent works is the matter of :mod:`.work`: on this worker or at its vendor. Where one is
unavailable, the next of the step's list goes on with what is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk.exceptions import AirflowRuntimeError, TaskDeferred

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
    Unavailable,
    VerificationFailed,
    failure_to_dict,
)
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.agents.outcome import Outcome
from airflow_agent_provider.agents.prices import Prices, load_prices
from airflow_agent_provider.agents.processes import end_at_home
from airflow_agent_provider.hooks.agent import get_agent_hook
from airflow_agent_provider.hooks.artifacts import open_store
from airflow_agent_provider.hooks.lease import Lease
from airflow_agent_provider.operators.budget import Budget, Ledger
from airflow_agent_provider.operators.checks import Checks
from airflow_agent_provider.operators.inputs import StepInputs
from airflow_agent_provider.operators.judge import Verdict, judge, output_file
from airflow_agent_provider.operators.record import (
    Record,
    read_session,
    redact_values,
    refuse_secrets,
)
from airflow_agent_provider.operators.retry import plain_delay
from airflow_agent_provider.operators.steps import inline_or_reference
from airflow_agent_provider.operators.work import AgentChoice, AgentWork, Work
from airflow_agent_provider.prompts.render import Prompt
from airflow_agent_provider.settings import load_settings
from airflow_agent_provider.workspace.cleanup import remove_tree, step_folder
from airflow_agent_provider.workspace.workspace import Upstream, Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_agent_provider.operators.agent import AgentOperator

#: The key of the checkpoint in Airflow's task state store, which a task reads only of itself.
CHECKPOINT = "checkpoint"
#: The attempt's own account, which the mirror reads.
OUTCOME = "outcome.json"
#: The XCom key under which a failed attempt leaves its failure class and reason.
FAILURE = "failure"

_CONTINUE = """\
An earlier attempt at this step did not succeed: {problem}
What it had changed by then is in the working tree. Look at what is there, do not redo what is done,
and finish what is missing. The step:

"""
_TAKEN_OVER = """\
Another agent began with this step, and cannot go on: {problem}
What it had changed by then is in the working tree. Look at what is there, do not redo what is done,
and finish what is missing. The step:

"""

#: What a checkpoint takes over from the one before it, unless it has its own.
_CARRIED_OVER = {"commit", "bundle", "session_files", "hosted_agent", "hosted_run", "repairs"}
#: What of it is one agent's own, and no other's.
_OF_ONE_AGENT: dict[str, Any] = {
    "session": None,
    "session_files": {},
    "hosted_agent": None,
    "hosted_run": None,
    "rejected_run": None,
}


class Attempt:
    """One attempt of an agent step.

    :param operator: the step.
    :param context: Airflow's context of the task.
    :param event: what the trigger told, for the second half of an attempt that was deferred.
    """

    def __init__(
        self, operator: AgentOperator, context: Context, event: dict[str, Any] | None = None
    ) -> None:
        ti = context["ti"]
        self.operator = operator
        self.context = context
        self.event = event
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
        self.ledger = Ledger(
            self.store, self.key, Budget(operator.budget_usd, operator.budget_tokens)
        )
        self.session: Session | None = None
        self.model: str | None = None
        #: Whether the agent's program ran inside the box; None while, or where, none ran here.
        self.boxed: bool | None = None
        self._usage = Usage()
        self._choices = list(operator.choices)
        self._agent: AgentWork | None = None
        self._resources = ExitStack()
        self._workspace: Workspace | None = None
        self._prompt: Prompt | None = None
        self._checkpoint: Checkpoint | None = None
        #: Hexadecimal digest of the resolved prompt.
        self.prompt_sha256 = ""
        #: What the attempts before this one took.
        self._earlier = Spent()
        self._written = 0
        self._segments = 0

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
            except TaskDeferred:
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

    def run_failed(self, failure: AgentFailure) -> NoReturn:
        """Record an attempt that failed while nobody was there, and raise ``failure``."""
        try:
            self.lease.acquire(wait=2 * self.settings.lease_ttl)
            self.fail(failure)
        finally:
            self._release()
        raise failure

    def begin(self) -> None:
        """Take the step's lease, make the workspace and the prompt, find the checkpoint."""
        self.lease.acquire(wait=2 * self.settings.lease_ttl)
        self._resources.enter_context(self.lease.keep(self.on_lost))
        self._prepare(checkpoint=None)
        self._agent = self._agent_for(self._choices[0])
        self._prompt = self._make_prompt()
        self.prompt_sha256 = self._prompt.sha256
        self.operator.prompt = self._prompt.text
        self._checkpoint = self._find_checkpoint()
        self._begin_with_the_one_that_began()
        if self._checkpoint:
            self._earlier = self._checkpoint.spent
        if self._checkpoint and self._checkpoint.commit:
            self._prepare(self._checkpoint)

    def judge(self, answer: AgentResult) -> Verdict:
        """Return the verdict on what the agent has left by now.

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
        """End the agent: the step belongs to a newer attempt, or the supervisor is gone."""
        self.log.error("This attempt ends itself: %s", lost.reason)
        if self._agent is not None:
            self._agent.on_lost(lost)

    def stop(self) -> None:
        """End the agent; callable from any thread."""
        if self._agent is not None:
            self._agent.stop()

    # --- who works -------------------------------------------------------------------------

    @property
    def agent(self) -> AgentWork:
        """The agent whose turn it is."""
        if self._agent is None:
            raise RuntimeError("no agent works yet")
        return self._agent

    def _work(self) -> Work:
        """Let the agents work, one after the other, until one can do it."""
        self.checks.setup()
        while True:
            self.ledger.check()
            try:
                return self.agent.work()
            except Unavailable as failure:
                self._fail_over(failure)

    def _fail_over(self, failure: Unavailable) -> None:
        """Hand the work to the next agent of the list; raise ``failure`` if there is none."""
        others = self._choices[self._choices.index(self.agent.choice) + 1 :]
        if not others:
            raise failure
        following = others[0]
        self.log.warning("%s; %s goes on with the work", failure, following.title)
        self._keep_work(failure)
        self._give_to(following)
        self._prompt = self._make_prompt()

    def _give_to(self, choice: AgentChoice) -> None:
        """Let another agent go on: with the work, without the conversation."""
        if self._checkpoint is not None:
            self._checkpoint = self._checkpoint.model_copy(update=_OF_ONE_AGENT)
        self.session, self.model = None, None
        self._agent = self._agent_for(choice)

    def _agent_for(self, choice: AgentChoice) -> AgentWork:
        hook = get_agent_hook(choice.agent, choice.conn_id)
        if hook.runs_hosted(choice.options, self.inputs.repository.url):
            from airflow_agent_provider.operators.hosted import HostedWork

            return HostedWork(self, choice, hook)
        from airflow_agent_provider.operators.local import LocalWork

        return LocalWork(self, choice, hook)

    def _begin_with_the_one_that_began(self) -> None:
        """Go on with the agent whose conversation the checkpoint holds, if it can go on."""
        kept = self._checkpoint
        if kept is None or kept.agent == self.agent.choice.agent:
            return
        began = next((c for c in self._choices if c.agent == kept.agent), None)
        unavailable = kept.failure_class == Unavailable.__name__ and self.event is None
        if began is None or unavailable:
            self._checkpoint = kept.model_copy(update=_OF_ONE_AGENT)
        else:
            self._agent = self._agent_for(began)

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
        kept = self._checkpoint
        problem = kept.problem or "Its process ended before it was done."
        words = _CONTINUE if kept.agent == self.agent.choice.agent else _TAKEN_OVER
        return words.format(problem=problem) + self.prompt_text

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

    def _make_prompt(self) -> Prompt:
        if self.event is not None:
            # The agent has its prompt already; made anew it might be another one.
            stored = self.store.get(f"{self.key.prefix}/prompt.md").decode()
            self.record.put("prompt.md", stored.encode())
            return Prompt(stored)
        prompt = self.inputs.prompt(self.workspace, hosted=self.agent.hosted)
        first = self.agent.choice == self._choices[0]
        name = "prompt.md" if first else f"prompt.{self.agent.choice.agent}.md"
        self.record.put_text(name, prompt.text)
        return prompt

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

    def _find_checkpoint(self) -> Checkpoint | None:
        found = read_checkpoint(self.context["task_state_store"].get(CHECKPOINT))
        if self.event is not None:
            return self._checkpoint_of_event(found, self.event)
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

    def _checkpoint_of_event(self, found: Checkpoint | None, event: dict[str, Any]) -> Checkpoint:
        if found is None or found.hosted_run != event.get("run_id"):
            raise Interrupted("the checkpoint with the vendor's run is gone; the step starts anew")
        self.prompt_sha256 = found.prompt_sha256
        self.started = found.started or self.started
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
        self.log.info("The agent's work was finished by attempt %d", self._checkpoint.attempt)
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

    def save_session(self) -> None:
        """Keep the session alone, before it has done anything.

        The tree is not looked at: a first command that runs just now would be in it, and not in the
        session, and so would be run again.

        :raises Superseded: if a newer attempt has the step.
        """
        self._written += 1
        self._keep(None, f"checkpoints/{self._written:04d}/", self._read_session())

    @property
    def spent_here(self) -> Usage:
        """What this attempt took, with its cost by the vendor or else by the price list."""
        return self._usage

    def spend(self, usage: Usage, *, metered: bool = True) -> None:
        """Count what a turn has taken since the last call.

        :param usage: what it has taken.
        :param metered: whether list prices tell its cost, where the vendor does not.
        :raises BudgetExceeded: if the run's budget is spent by that.
        """
        model = self.model or self.agent.choice.model
        if usage.cost is None and metered:
            usage = replace(usage, cost=self._prices.cost(model, usage))
        self._usage = add_known(self._usage, usage)
        self.ledger.record(self._usage, model)

    @cached_property
    def _prices(self) -> Prices:
        return load_prices(self.settings.prices)

    def put_segment(self, number: int, content: bytes) -> None:
        """Store a segment of the transcript."""
        self.lease.check()
        self._segments += 1
        self.record.put(f"transcript/{self._segments:04d}.jsonl", content)

    def confinement(self, network: str) -> Confinement:
        """Return the bounds that programs of this attempt are held in.

        :param network: what they reach, ``model`` or ``open``.
        """
        bounds = self.settings.confinement
        seen = (*bounds.read_only_paths, *self.workspace.object_folders)
        return replace(bounds, network=Network(network), read_only_paths=seen)

    def _read_session(self) -> dict[str, bytes]:
        return read_session(self._agent.session_files() if self._agent else {})

    def _keep(
        self, commit: str | None, folder: str, session: Mapping[str, bytes], **values: Any
    ) -> None:
        """Store the work and the session below ``folder``, then point the checkpoint there."""
        before = self._checkpoint
        kept: dict[str, Any] = {}
        if before:
            kept = before.model_dump(include=_CARRIED_OVER)
        if commit:
            refuse_secrets(self.workspace.patch(commit), "what the agent changed")
            kept |= {"commit": commit, "bundle": self._bundle(commit, f"{folder}checkpoint.bundle")}
        if session:
            kept["session_files"] = self.record.put_session(session, f"{folder}session/")
        checkpoint = self._new_checkpoint().model_copy(update=kept | values)
        self.lease.check()
        self._checkpoint = checkpoint
        self.context["task_state_store"].set(CHECKPOINT, checkpoint.model_dump(mode="json"))

    def _new_checkpoint(self) -> Checkpoint:
        before = self._checkpoint
        total = add_known(Usage(**self._earlier.model_dump()), self.spent_here)
        return Checkpoint(
            attempt=self.key.number,
            clear_number=self.clear_number,
            started=self.started,
            prompt_sha256=self.prompt_sha256,
            start=self.workspace.start,
            item_sha256=self._item_sha256(),
            agent=self._agent_name,
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
            "Agents-Agent": self._agent_name,
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

    @property
    def _agent_name(self) -> str:
        return (self._agent.choice if self._agent else self._choices[0]).agent

    def _subject(self) -> str:
        return f"{self.key.step.step_id}: {self.key.step.dag_id}"

    def _push(self, commit: str) -> str | None:
        """Push the run's branch where it shall be pushed; return its name if it was."""
        if not self.inputs.repository.url or not (
            self.agent.hosted or self.settings.push == "always"
        ):
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
            agent=self._agent_name,
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
        return {
            "status": "success",
            "output": output,
            "output_path": self.operator.output_path,
            "commit": commit,
            "base": self.workspace.base,
            "branch": branch,
            "agent": self._agent_name,
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


def add_known(one: Usage, other: Usage) -> Usage:
    """Return the sum of what two turns took; its cost is unknown where either's is."""
    total = one + other
    known = all(u.cost is not None for u in (one, other) if u.total_tokens)
    return total if known else replace(total, cost=None)


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
