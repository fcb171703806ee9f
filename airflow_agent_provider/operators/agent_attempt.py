"""One attempt of an agent step: its agents, its prompt, its conversation, what it costs.

How an agent works is the matter of :mod:`.work`: on this worker or at its vendor. Where one is
unavailable, the next of the step's list goes on with what is there.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_agent_provider.agents.checkpoint import Checkpoint, Spent
from airflow_agent_provider.agents.contract import Usage
from airflow_agent_provider.agents.failures import AgentFailure, Interrupted, Unavailable
from airflow_agent_provider.agents.prices import Prices, load_prices
from airflow_agent_provider.hooks.agent import get_agent_hook
from airflow_agent_provider.operators.attempt import Attempt
from airflow_agent_provider.operators.budget import Budget, Ledger
from airflow_agent_provider.operators.prompting import make_prompt
from airflow_agent_provider.operators.record import read_session
from airflow_agent_provider.operators.work import AgentChoice, AgentWork, Work
from airflow_agent_provider.prompts.render import Prompt

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_agent_provider.operators.agent import AgentOperator

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

#: What of it is one agent's own, and no other's.
_OF_ONE_AGENT: dict[str, Any] = {
    "session": None,
    "session_files": {},
    "hosted_agent": None,
    "hosted_run": None,
    "rejected_run": None,
}


class AgentAttempt(Attempt):
    """One attempt of an agent step.

    :param operator: the step.
    :param context: Airflow's context of the task.
    :param event: what the trigger told, for the second half of an attempt that was deferred.
    """

    operator: AgentOperator

    def __init__(
        self, operator: AgentOperator, context: Context, event: dict[str, Any] | None = None
    ) -> None:
        super().__init__(operator, context)
        self.event = event
        self.ledger = Ledger(
            self.store, self.key, Budget(operator.budget_usd, operator.budget_tokens)
        )
        self._usage = Usage()
        #: What the attempts before this one took.
        self._earlier = Spent()
        self._choices = list(operator.choices)
        self._agent: AgentWork | None = None
        self._segments = 0

    def run_failed(self, failure: AgentFailure) -> NoReturn:
        """Record an attempt that failed while nobody was there, and raise ``failure``."""
        try:
            self.lease.acquire(wait=2 * self.settings.lease_ttl)
            self.fail(failure)
        finally:
            self._release()
        raise failure

    def on_lost(self, lost: Interrupted) -> None:
        """End the agent: the step belongs to a newer attempt, or the supervisor is gone."""
        super().on_lost(lost)
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

    @property
    def who(self) -> str:
        """The agent's name."""
        return (self._agent.choice if self._agent else self._choices[0]).agent

    @property
    def pushes(self) -> bool:
        """Whether the run's branch is pushed: a hosted agent's work is there already."""
        return self.agent.hosted or super().pushes

    def _continued(self, found: Checkpoint | None) -> Checkpoint | None:
        """Go on with the agent whose conversation the checkpoint holds, if it can go on."""
        if found is None:
            return None
        self._earlier = found.spent
        if found.agent == self.agent.choice.agent:
            return found
        began = next((c for c in self._choices if c.agent == found.agent), None)
        unavailable = found.failure_class == Unavailable.__name__ and self.event is None
        if began is None or unavailable:
            return found.model_copy(update=_OF_ONE_AGENT)
        self._agent = self._agent_for(began)
        return found

    # --- what it starts from ---------------------------------------------------------------

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

    def _resolve(self) -> Prompt:
        self._agent = self._agent_for(self._choices[0])
        prompt = self._make_prompt()
        self.operator.prompt = prompt.text
        return prompt

    def _make_prompt(self) -> Prompt:
        if self.event is not None:
            # The agent has its prompt already; made anew it might be another one.
            stored = self.store.get(f"{self.key.prefix}/prompt.md").decode()
            self.record.put("prompt.md", stored.encode())
            return Prompt(stored)
        prompt = make_prompt(self.operator, self.inputs, self.workspace, hosted=self.agent.hosted)
        first = self.agent.choice == self._choices[0]
        name = "prompt.md" if first else f"prompt.{self.agent.choice.agent}.md"
        self.record.put_text(name, prompt.text)
        return prompt

    def _find_checkpoint(self) -> Checkpoint | None:
        if self.event is None:
            return super()._find_checkpoint()
        return self._checkpoint_of_event(self._stored_checkpoint(), self.event)

    def _checkpoint_of_event(self, found: Checkpoint | None, event: dict[str, Any]) -> Checkpoint:
        if found is None or found.hosted_run != event.get("run_id"):
            raise Interrupted("the checkpoint with the vendor's run is gone; the step starts anew")
        self.prompt_sha256 = found.prompt_sha256
        self.started = found.started or self.started
        return found

    # --- what it keeps while it works ------------------------------------------------------

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

    @property
    def spent(self) -> Usage:
        """What all attempts took, with this one."""
        return add_known(Usage(**self._earlier.model_dump()), self.spent_here)

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

    def _read_session(self) -> dict[str, bytes]:
        return read_session(self._agent.session_files() if self._agent else {})


def add_known(one: Usage, other: Usage) -> Usage:
    """Return the sum of what two turns took; its cost is unknown where either's is."""
    total = one + other
    known = all(u.cost is not None for u in (one, other) if u.total_tokens)
    return total if known else replace(total, cost=None)
