"""Waiting for a run at its vendor: without a worker slot in a trigger, or on the worker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_agent_provider.agents.contract import Limits
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    Stalled,
    failure_to_dict,
)
from airflow_agent_provider.agents.registry import AGENTS
from airflow_agent_provider.hooks.agent import (
    HostedAgentHook,
    HostedRun,
    ListedAgent,
    get_agent_hook,
)
from airflow_agent_provider.triggers.poller import News, Ticket, shared_poller
from airflow_agent_provider.triggers.rounds import Key
from airflow_agent_provider.triggers.watch import Decision, Waiter

log = logging.getLogger(__name__)

#: Characters of each text of a failure in an event: Airflow keeps events in its database.
_TEXT_LENGTH = 2000
#: Seconds for the last look at a run that is about to be given up.
LOOK_PATIENCE = 120.0


class HostedRunTrigger(BaseTrigger):
    """Waits until a vendor's run has ended, and yields exactly one event.

    The event is ``{"agent_id", "run_id", "status", "failure"}``. ``status`` is ``ended`` if the
    run ended with success, else ``failed``; then ``failure`` is what
    :func:`~airflow_agent_provider.agents.failures.failure_from_dict` reads. The result itself is
    not in the event: the operator reads it with ``get_run``, which works for a failed run too.

    All triggers of one triggerer whose connections hold the same key share one poller, which asks
    for many runs at once and keeps to the rate that the vendor grants.

    The trigger owns the timeout and the stall: ``execution_timeout`` does not reach a deferred
    task. When one is reached it ends the vendor's run before it yields ``TimedOut`` or
    ``Stalled``. Trouble on the way to the vendor is waited out until then, and a rate limit
    honoured. It never raises, since Airflow would lose the cause.

    What an operator must still expect: a trigger that Airflow itself gives up (its class cannot be
    imported on the triggerer, the timeout of ``defer()`` is over) does not come back with an
    event. Airflow resumes such a task with ``__fail__``, and ``resume_execution`` is then called
    with ``{"error", "traceback"}`` instead of the operator's method. The vendor's run goes on, so
    the operator overrides ``resume_execution``, reads the run id that it kept before it deferred,
    looks at the run, and takes it from there. A triggerer that dies or restarts is no failure:
    another one starts the trigger anew, with the same end of the timeout and a fresh stall.

    :param agent: the agent's name.
    :param conn_id: connection of the agent; None takes the agent's default one.
    :param agent_id: the vendor's id of the agent.
    :param run_id: the vendor's id of the run.
    :param timeout_at: when the attempt's timeout is over: seconds since the epoch, or an ISO date.
    :param stall: seconds without a sign of life after which the run counts as stalled.
    :param poll: seconds between two looks at the run, if the rate allows; None takes the
        connection's.
    :param settle: seconds before the first look.
    """

    def __init__(
        self,
        *,
        agent: str,
        conn_id: str | None,
        agent_id: str,
        run_id: str,
        timeout_at: float | str,
        stall: float,
        poll: float | None = None,
        settle: float = 0.0,
    ) -> None:
        super().__init__()
        self.agent = agent
        self.conn_id = conn_id
        self.agent_id = agent_id
        self.run_id = run_id
        self.timeout_at = _epoch(timeout_at)
        self.stall = float(stall)
        self.poll = poll
        self.settle = float(settle)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments, for the triggerer's database row."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "agent": self.agent,
                "conn_id": self.conn_id,
                "agent_id": self.agent_id,
                "run_id": self.run_id,
                "timeout_at": self.timeout_at,
                "stall": self.stall,
                "poll": self.poll,
                "settle": self.settle,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the run's end; yield the one event."""
        try:
            failure = await self._wait()
        except AgentFailure as error:
            failure = error
        except Exception as error:
            log.exception("the wait for %s failed", self.run_id)
            failure = AgentFailed(
                f"the wait for run {self.run_id} failed", raw=f"{type(error).__name__}: {error}"
            )
        yield TriggerEvent(
            {
                "agent_id": self.agent_id,
                "run_id": self.run_id,
                "status": "ended" if failure is None else "failed",
                "failure": None if failure is None else _small(failure_to_dict(failure)),
            }
        )

    async def on_kill(self) -> None:
        """End the vendor's run: a user has marked or cleared the task.

        Not so in ``cleanup()``, which also runs when the triggerer shuts down and another one is
        about to take over the wait.
        """
        hook = self._hook()
        poller = shared_poller(hook, await hook.alimits())
        await poller.cancel(self._key)
        log.info("the run %s was cancelled with its task", self.run_id)

    async def _wait(self) -> AgentFailure | None:
        hook = self._hook()
        limits = await hook.alimits()
        poll = self.poll or limits.poll_interval
        waiter = self._waiter(poll)
        await asyncio.sleep(self.settle)
        async with shared_poller(hook, limits).watch(self._key, poll) as ticket:
            decision = await self._follow(waiter, ticket)
            while decision.cancel:
                decision = await self._give_up(waiter, ticket, decision)
                if decision.wait is not None:
                    decision = await self._follow(waiter, ticket)
            return decision.failure

    async def _follow(self, waiter: Waiter, ticket: Ticket) -> Decision:
        """Take in what is told of the run until there is nothing more to wait for."""
        status = ""
        while True:
            news = await ticket.news(waiter.left(time.monotonic()))
            if isinstance(news, HostedRun):
                status = _tell(news, status)
            decision = _decide(waiter, news, time.monotonic())
            if decision.ask:
                ticket.ask(waiter.sign)
            elif decision.wait is None:
                return decision

    async def _give_up(self, waiter: Waiter, ticket: Ticket, decision: Decision) -> Decision:
        """End the run, unless it turns out that it has ended by itself, or that it works."""
        if isinstance(decision.failure, Stalled):
            # What the list and the events have shown is not all that a look tells.
            run = await _look(ticket)
            again = waiter.saw(run, time.monotonic()) if run else Decision(ask=True)
            if not again.ask:
                return again
        try:
            under_way = await ticket.cancel()
        except AgentFailure as error:
            log.warning("the run %s could not be cancelled: %s", self.run_id, error)
            under_way = True
        run = None if under_way else await _look(ticket)
        if run is not None and run.ended:
            return Decision(failure=run.failure)
        return Decision(failure=decision.failure)

    @property
    def _key(self) -> Key:
        return Key(self.agent_id, self.run_id)

    def _waiter(self, poll: float) -> Waiter:
        return Waiter(
            title=AGENTS[self.agent].title,
            run_id=self.run_id,
            timeout=self.timeout_at - time.time(),
            stall=self.stall,
            poll=poll,
            now=time.monotonic(),
        )

    def _hook(self) -> HostedAgentHook:
        hook = get_agent_hook(self.agent, self.conn_id)
        if not isinstance(hook, HostedAgentHook):
            raise AgentFailed(f"{self.agent} is no agent that runs at its vendor")
        return hook


def wait_for_run(
    hook: HostedAgentHook,
    agent_id: str,
    run_id: str,
    limits: Limits,
    poll: float | None = None,
) -> HostedRun:
    """Wait on the worker until the run has ended; return it, failed or not.

    :param hook: the agent's hook.
    :param agent_id: the vendor's id of the agent.
    :param run_id: the vendor's id of the run.
    :param limits: the attempt's timeout and stall.
    :param poll: seconds between two looks at the run; None takes the connection's.
    :raises TimedOut: after the vendor's run was cancelled; so does ``Stalled``.
    :raises AgentFailure: of the class that the vendor's refusal has, if it cannot be watched.
    """
    waiter = Waiter(
        title=hook.spec.title,
        run_id=run_id,
        timeout=limits.remaining,
        stall=limits.stall,
        poll=poll or hook.poll_interval(),
        now=time.monotonic(),
    )
    status, run = "", None
    decision = Decision(wait=0.0)
    while decision.wait is not None:
        time.sleep(decision.wait)
        try:
            run = hook.get_run(agent_id, run_id)
            if run.ended:
                return run
            status = _tell(run, status)
            decision = waiter.saw(run, time.monotonic())
            if decision.ask:
                sign = hook.sign_of_life(agent_id, run_id, waiter.sign)
                decision = waiter.heard(sign, time.monotonic())
        except AgentFailure as failure:
            log.warning("%s", failure)
            decision = waiter.failed(failure, time.monotonic())
    if decision.cancel:
        try:
            hook.cancel(agent_id, run_id)
        except AgentFailure as error:
            log.warning("the run %s could not be cancelled: %s", run_id, error)
    assert decision.failure is not None
    raise decision.failure


def _decide(waiter: Waiter, news: News | None, now: float) -> Decision:
    if news is None:
        return waiter.passed(now)
    if isinstance(news, AgentFailure):
        log.warning("%s", news)
        return waiter.failed(news, now)
    if isinstance(news, HostedRun):
        return waiter.saw(news, now)
    if isinstance(news, ListedAgent):
        return waiter.listed(news, now)
    return waiter.heard(news.mark, now)


async def _look(ticket: Ticket) -> HostedRun | None:
    """Return where the run stands now; None if that cannot be told in time."""
    ticket.look()
    deadline = time.monotonic() + LOOK_PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        news = await ticket.news(left)
        if isinstance(news, HostedRun):
            return news
        if isinstance(news, AgentFailure):
            break
    return None


def _tell(run: HostedRun, before: str) -> str:
    if run.status != before:
        log.info("run %s of agent %s: %s", run.run_id, run.agent_id, run.status)
    return run.status


def _epoch(moment: float | str) -> float:
    if isinstance(moment, str):
        return datetime.fromisoformat(moment).timestamp()
    return float(moment)


def _small(failure: dict[str, object]) -> dict[str, object]:
    return {
        name: value[:_TEXT_LENGTH] if isinstance(value, str) else value
        for name, value in failure.items()
    }
