"""An attempt whose agent runs at its vendor, on a clone of the repository.

It has two halves. The first pushes the branch, starts the vendor's run and keeps its id; then the
task is deferred, and the trigger waits. The second fetches what the agent did.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from airflow.sdk.configuration import conf

from airflow_agent_provider.agents.checkpoint import Checkpoint, read_checkpoint
from airflow_agent_provider.agents.contract import AgentResult, Session, Usage
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    Interrupted,
    InvalidDefinition,
    failure_from_dict,
)
from airflow_agent_provider.hooks.agent import HostedAgentHook, HostedRun
from airflow_agent_provider.operators.attempt import CHECKPOINT, Attempt, Work
from airflow_agent_provider.prompts.render import Prompt
from airflow_agent_provider.triggers.hosted import HostedRunTrigger, wait_for_run


class HostedAttempt(Attempt):
    """Starts the vendor's run, or comes back to it, and takes over what the agent did."""

    hosted: ClassVar[bool] = True

    def work(self) -> Work:
        """Start the vendor's run, or attach to it, and wait for its end.

        :raises TaskDeferred: while the vendor works, if the step is deferrable.
        """
        run = self._submit()
        if not run.ended:
            hook = self._hook()
            poll = hook.poll_interval(self.operator.options)
            if self.operator.deferrable:
                self._defer(run, poll)
            try:
                run = wait_for_run(hook, run.agent_id, run.run_id, self.limits, poll)
            except AgentFailure:
                self._add_cost(run.agent_id, run.run_id)
                raise
        return self._take_over(run)

    def resume(self, event: dict[str, Any]) -> dict[str, Any]:
        """Run the second half of an attempt that was deferred.

        :param event: what the trigger told.
        """
        self._event = event
        return self.run()

    _event: dict[str, Any] | None = None

    def _make_prompt(self) -> Prompt:
        if self._event is None:
            return super()._make_prompt()
        # The agent has its prompt already; made anew it might be another one.
        stored = self.store.get(f"{self.key.prefix}/prompt.md").decode()
        self.record.put("prompt.md", stored.encode())
        return Prompt(stored)

    def _find_checkpoint(self) -> Checkpoint | None:
        if self._event is None:
            return super()._find_checkpoint()
        found = read_checkpoint(self.context["task_state_store"].get(CHECKPOINT))
        if found is None or found.hosted_run != self._event.get("run_id"):
            raise Interrupted("the checkpoint with the vendor's run is gone; the step starts anew")
        self.prompt_sha256 = found.prompt_sha256
        self.started = found.started or self.started
        return found

    def _submit(self) -> HostedRun:
        hook = self._hook()
        kept = self.checkpoint
        if self._event is not None and kept and kept.hosted_agent and kept.hosted_run:
            return self._reported(kept.hosted_agent, kept.hosted_run, self._event)
        repository = self.inputs.repository
        if not repository.url:
            raise InvalidDefinition(
                f"{hook.spec.title} works on a clone of the run's repository, and this run has "
                "none; give the workflow a repository, or trigger it with one: "
                '--conf \'{"repository": "<URL>"}\''
            )
        run = hook.submit(
            agent_id=(kept and kept.hosted_agent) or hook.agent_id_for(self._identity()),
            prompt=self.continuing_prompt if kept else self.prompt_text,
            repository=repository.url,
            ref=self._push_start(),
            name=f"{self.key.step.dag_id}/{self.key.step.run_id}/{self.key.step.step_id}",
            model=self.operator.model or None,
            options=self.operator.options,
            after=kept.rejected_run if kept else None,
        )
        self.session = Session(self.operator.agent, run.agent_id)
        self.log.info("%s works as agent %s, run %s", hook.spec.title, run.agent_id, run.run_id)
        # Kept before anything can wait: whoever comes next finds the run by it.
        self.save_checkpoint("submitted", hosted_agent=run.agent_id, hosted_run=run.run_id)
        return run

    def _identity(self) -> str:
        """Return what the vendor's id is made of: the same for all attempts at the same work."""
        step = self.key.step
        return "/".join(
            (
                step.prefix,
                self.prompt_sha256,
                self.workspace.start,
                str(self.clear_number),
            )
        )

    def _reported(self, agent_id: str, run_id: str, event: dict[str, Any]) -> HostedRun:
        self.session = Session(self.operator.agent, agent_id)
        told = event.get("failure")
        if not told:
            return self._hook().get_run(agent_id, run_id)
        self._add_cost(agent_id, run_id)
        raise failure_from_dict(told)

    def _add_cost(self, agent_id: str, run_id: str) -> None:
        """Count what a run took that failed."""
        try:
            run = self._hook().get_run(agent_id, run_id)
        except AgentFailure as error:
            self.log.warning("What the failed run took is unknown: %s", error)
        else:
            self.spent_here += run.usage or Usage()

    def _push_start(self) -> str:
        """Push what the agent starts from; return the branch that is exactly that."""
        branch = self.key.step.run_branch
        downstream = self.operator.get_flat_relative_ids(upstream=False)
        start = self.workspace.start
        replaced = {self.key.step.step_id, *downstream}
        if self.workspace.push(start, branch, replaces=replaced) == start:
            return branch
        # A step beside this one has pushed its work there, which is none of this step's.
        own = f"{branch}.{self.key.step.step_id}"
        self.workspace.push(start, own, replaces=replaced)
        return own

    def _defer(self, run: HostedRun, poll: float) -> None:
        timeout = self.limits.remaining
        self.lease.release()
        self.operator.defer(
            trigger=HostedRunTrigger(
                agent=self.operator.agent,
                conn_id=self.hook.conn_id,
                agent_id=run.agent_id,
                run_id=run.run_id,
                timeout_at=time.time() + timeout,
                stall=self.limits.stall,
                poll=poll,
                settle=_settle_seconds(),
            ),
            method_name="resume",
        )

    def _take_over(self, run: HostedRun) -> Work:
        if run.usage is not None:
            self.spent_here += run.usage
        if run.failure is not None:
            raise run.failure
        if not run.ended:
            raise Interrupted(f"the vendor's run {run.run_id} is {run.status}, not ended")
        if run.branch:
            self.workspace.adopt(self.workspace.fetch_branch(run.branch))
        else:
            self.log.info("The agent pushed no branch: it changed nothing")
        result = AgentResult(
            "completed", run.message, session=self.session, usage=run.usage or Usage()
        )
        return Work(result, self.spent_here)

    def stop(self) -> None:
        """Cancel the vendor's run."""
        kept = self.checkpoint
        if kept and kept.hosted_agent and kept.hosted_run:
            self._hook().cancel(kept.hosted_agent, kept.hosted_run)

    def _hook(self) -> HostedAgentHook:
        if not isinstance(self.hook, HostedAgentHook):
            raise AgentFailed(f"{self.hook.spec.title} is not hosted by its vendor")
        return self.hook


def _settle_seconds() -> float:
    """Return the seconds in which no event may come after a task was deferred.

    Airflow's supervisor may see only at its next heartbeat that the deferring process has ended.
    If the task is resumed by then, the scheduler takes that end for the resumed task's death and
    retries it (measured on Airflow 3.3.2).
    """
    return float(conf.getfloat("workers", "min_heartbeat_interval")) + 1.0


def trigger_failure(error: str, traceback: list[str] | None) -> AgentFailure:
    """Return the failure of a trigger that ended without an event, as Airflow reports it.

    :param error: Airflow's word for what happened.
    :param traceback: lines of the trigger's traceback, if there are any.
    """
    last = (traceback or [""])[-1].strip()
    return Interrupted(
        "the trigger that waited for the vendor's run ended without an event; the run goes on and "
        "the next attempt attaches to it",
        raw=f"{error} {last}".strip(),
    )
