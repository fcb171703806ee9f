"""An agent that runs at its vendor, on a clone of the repository.

The attempt has two halves then. The first pushes the branch, starts the vendor's run and keeps its
id; then the task is deferred, and the trigger waits. The second fetches what the agent did.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from airflow.sdk.configuration import conf

from airflow_agent_provider.agents.contract import AgentResult, Session, Usage
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    BudgetExceeded,
    Interrupted,
    InvalidDefinition,
    failure_from_dict,
)
from airflow_agent_provider.hooks.agent import HostedAgentHook, HostedRun
from airflow_agent_provider.operators.repair import can_repair, repair_prompt
from airflow_agent_provider.operators.work import AgentWork, Work
from airflow_agent_provider.triggers.hosted import HostedRunTrigger, wait_for_run


class HostedWork(AgentWork):
    """Starts the vendor's run, or comes back to it, and takes over what the agent did."""

    hosted: ClassVar[bool] = True

    def work(self) -> Work:
        """Have the vendor's run until what it left is found good.

        :raises TaskDeferred: while the vendor works, if the step is deferrable.
        """
        attempt = self.attempt
        run = self._wait(self._first_run())
        while True:
            answer = self._take_over(run)
            try:
                return Work(answer, attempt.judge(answer))
            except AgentFailure as fault:
                rounds = self._repairs()
                if rounds >= attempt.operator.repair or not can_repair(
                    fault, attempt.operator.access
                ):
                    raise
                attempt.log.warning("Repair round %d: %s", rounds + 1, fault)
                attempt.ledger.check()
                run = self._wait(self._follow_up(run, fault, rounds + 1))

    def _repairs(self) -> int:
        kept = self.attempt.checkpoint
        return kept.repairs if kept and kept.attempt == self.attempt.key.number else 0

    def _wait(self, run: HostedRun) -> HostedRun:
        if run.ended:
            return run
        hook = self._hook()
        poll = hook.poll_interval(self.choice.options)
        if self.attempt.operator.deferrable:
            self._defer(run, poll)
        try:
            return wait_for_run(hook, run.agent_id, run.run_id, self.attempt.limits, poll)
        except AgentFailure:
            self._add_cost(run.agent_id, run.run_id)
            raise

    def _first_run(self) -> HostedRun:
        attempt = self.attempt
        kept, event = attempt.checkpoint, attempt.event
        if event is not None and kept and kept.hosted_agent and kept.hosted_run:
            # Told once: a repair round that follows is a run of its own.
            attempt.event = None
            return self._reported(kept.hosted_agent, kept.hosted_run, event)
        return self._submit(
            agent_id=(kept and kept.hosted_agent) or self._hook().agent_id_for(self._identity()),
            prompt=attempt.continuing_prompt if kept else attempt.prompt_text,
            after=kept.rejected_run if kept else None,
        )

    def _follow_up(self, run: HostedRun, fault: AgentFailure, round_: int) -> HostedRun:
        return self._submit(
            agent_id=run.agent_id, prompt=repair_prompt(fault), after=run.run_id, repairs=round_
        )

    def _submit(
        self, *, agent_id: str, prompt: str, after: str | None, repairs: int = 0
    ) -> HostedRun:
        attempt, hook = self.attempt, self._hook()
        repository = attempt.inputs.repository
        if not repository.url:
            raise InvalidDefinition(
                f"{hook.spec.title} works on a clone of the run's repository, and this run has "
                "none; give the workflow a repository, or trigger it with one: "
                '--conf \'{"repository": "<URL>"}\''
            )
        step = attempt.key.step
        run = hook.submit(
            agent_id=agent_id,
            prompt=prompt,
            repository=repository.url,
            ref=self._push_start(),
            name=f"{step.dag_id}/{step.run_id}/{step.step_id}",
            model=self.choice.model,
            options=self.choice.options,
            after=after,
        )
        attempt.session = Session(self.choice.agent, run.agent_id)
        attempt.log.info("%s works as agent %s, run %s", hook.spec.title, run.agent_id, run.run_id)
        # Kept before anything can wait: whoever comes next finds the run by it.
        attempt.save_checkpoint(
            "submitted", hosted_agent=run.agent_id, hosted_run=run.run_id, repairs=repairs
        )
        return run

    def _identity(self) -> str:
        """Return what the vendor's id is made of: the same for all attempts at the same work."""
        attempt = self.attempt
        return "/".join(
            (
                attempt.key.step.prefix,
                attempt.prompt_sha256,
                attempt.workspace.start,
                str(attempt.clear_number),
            )
        )

    def _reported(self, agent_id: str, run_id: str, event: dict[str, Any]) -> HostedRun:
        self.attempt.session = Session(self.choice.agent, agent_id)
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
            self.attempt.log.warning("What the failed run took is unknown: %s", error)
            return
        try:
            self.attempt.spend(run.usage or Usage())
        except BudgetExceeded as error:
            # The run's own failure is the one to tell; the next attempt meets the spent budget.
            self.attempt.log.warning("%s", error)

    def _push_start(self) -> str:
        """Push what the agent starts from; return the branch that is exactly that."""
        attempt = self.attempt
        step = attempt.key.step
        branch = step.run_branch
        downstream = attempt.operator.get_flat_relative_ids(upstream=False)
        start = attempt.workspace.start
        replaced = {step.step_id, *downstream}
        if attempt.workspace.push(start, branch, replaces=replaced) == start:
            return branch
        # A step beside this one has pushed its work there, which is none of this step's.
        own = f"{branch}.{step.step_id}"
        attempt.workspace.push(start, own, replaces=replaced)
        return own

    def _defer(self, run: HostedRun, poll: float) -> None:
        attempt = self.attempt
        timeout = attempt.limits.remaining
        attempt.lease.release()
        attempt.operator.defer(
            trigger=HostedRunTrigger(
                agent=self.choice.agent,
                conn_id=self.hook.conn_id,
                agent_id=run.agent_id,
                run_id=run.run_id,
                timeout_at=time.time() + timeout,
                stall=attempt.limits.stall,
                poll=poll,
                settle=_settle_seconds(),
            ),
            method_name="resume",
        )

    def _take_over(self, run: HostedRun) -> AgentResult:
        attempt = self.attempt
        if run.failure is not None:
            self._add_cost(run.agent_id, run.run_id)
            raise run.failure
        if not run.ended:
            raise Interrupted(f"the vendor's run {run.run_id} is {run.status}, not ended")
        if run.branch:
            attempt.workspace.adopt(attempt.workspace.fetch_branch(run.branch))
        else:
            attempt.log.info("The agent pushed no branch: it changed nothing")
        usage = run.usage or Usage()
        attempt.spend(usage)
        return AgentResult("completed", run.message, session=attempt.session, usage=usage)

    def stop(self) -> None:
        """Cancel the vendor's run."""
        kept = self.attempt.checkpoint
        if kept and kept.hosted_agent and kept.hosted_run:
            self._hook().cancel(kept.hosted_agent, kept.hosted_run)

    def on_lost(self, lost: Interrupted) -> None:
        """Leave the vendor's run to the attempt that has the step now."""

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
