"""The run's budget: a ledger in the artifact store, over all steps and attempts.

Each attempt overwrites only its own file, so that writing needs no agreement; the sum is read
before and during each turn. Steps that run at once can overshoot by one usage event each.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from airflow_agent_provider.agents.contract import Usage
from airflow_agent_provider.agents.failures import BudgetExceeded, InvalidDefinition
from airflow_agent_provider.agents.identity import AttemptKey
from airflow_agent_provider.hooks.artifacts import ArtifactStore, SwapConflict

#: Seconds for which what other attempts have spent is not read again while a turn goes on.
_OTHERS_SECONDS = 5.0
_WRITE_TRIES = 5


@dataclass(frozen=True)
class Budget:
    """What a run may spend.

    :param usd: USD; None for no bound.
    :param tokens: tokens read and written; None for no bound.
    """

    usd: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Spending:
    """What was spent.

    :param tokens: tokens read and written.
    :param usd: USD as far as it is known.
    :param unknown: whether some of it has a cost that nobody knows.
    """

    tokens: int = 0
    usd: float = 0.0
    unknown: bool = False

    def __add__(self, other: Spending) -> Spending:
        return Spending(
            self.tokens + other.tokens, self.usd + other.usd, self.unknown or other.unknown
        )

    @classmethod
    def of(cls, usage: Usage) -> Spending:
        """Return what ``usage`` is in a ledger."""
        unknown = usage.cost is None and usage.total_tokens > 0
        return cls(usage.total_tokens, usage.cost or 0.0, unknown)

    @property
    def shown(self) -> str:
        """The text for users."""
        cost = f"{self.usd:.4f} USD" + (" and an unknown cost" if self.unknown else "")
        return f"{self.tokens:,} tokens, {cost}"


class Ledger:
    """One attempt's page in the run's ledger, and the sum of all pages.

    :param store: the artifact store.
    :param key: the attempt.
    :param budget: what the run may spend.
    """

    def __init__(self, store: ArtifactStore, key: AttemptKey, budget: Budget) -> None:
        step = key.step
        self._store = store
        self._budget = budget
        self._folder = f"{step.run_prefix}/budget"
        self._page = f"{self._folder}/{step.step_id}.{step.map_index}.{key.number}.json"
        self._version: str | None = None
        self._read = False
        self._own = Spending()
        self._others = Spending()
        self._others_at = -_OTHERS_SECONDS

    @property
    def bounded(self) -> bool:
        """Whether there is anything to keep to."""
        return self._budget != Budget()

    def check(self) -> None:
        """Hold the sum of all pages against the budget; before a turn.

        :raises BudgetExceeded: if it is spent.
        """
        if not self.bounded:
            return
        self._others_at = -_OTHERS_SECONDS
        self._judge()

    def record(self, usage: Usage, model: str | None) -> None:
        """Write down what this attempt has spent so far; during a turn.

        :param usage: the sum over the attempt, with its cost where it is known.
        :param model: the model, for the error of a cost that is unknown.
        :raises BudgetExceeded: if the run's budget is spent now.
        :raises InvalidDefinition: if the budget is in USD and nobody knows the cost.
        """
        if not self.bounded:
            return
        own = Spending.of(usage)
        if own != self._own:
            self._own = own
            self._write()
        if self._budget.usd is not None and own.unknown:
            raise InvalidDefinition(
                f"the budget is {self._budget.usd:g} USD, but what the model "
                f"{model or '(unnamed)'} costs is unknown; add its price to the file that "
                "[agents] prices names, or give the budget in tokens"
            )
        self._judge()

    def _judge(self) -> None:
        spent = self._own + self._others_now()
        budget = self._budget
        over_tokens = budget.tokens is not None and spent.tokens >= budget.tokens
        over_usd = budget.usd is not None and spent.usd >= budget.usd
        if over_tokens or over_usd:
            allowed = " and ".join(
                text
                for text in (
                    f"{budget.tokens:,} tokens" if budget.tokens is not None else "",
                    f"{budget.usd:g} USD" if budget.usd is not None else "",
                )
                if text
            )
            raise BudgetExceeded(
                f"the run's budget of {allowed} is spent: {spent.shown}; raise the workflow's "
                "budget and clear the step to go on from its checkpoint"
            )

    def _others_now(self) -> Spending:
        now = time.monotonic()
        if now - self._others_at >= _OTHERS_SECONDS:
            total = Spending()
            for key in self._store.keys(self._folder):
                if key != self._page and (found := self._store.read(key)):
                    values = json.loads(found[0])
                    total += Spending(values["tokens"], values["usd"], values["unknown"])
            self._others, self._others_at = total, now
        return self._others

    def _write(self) -> None:
        content = json.dumps(vars(self._own)).encode()
        for _ in range(_WRITE_TRIES):
            if not self._read:
                found = self._store.read(self._page)
                self._version, self._read = (found[1] if found else None), True
            try:
                self._version = self._store.swap(self._page, content, self._version)
                return
            except SwapConflict:
                # The page is this attempt's alone; a write of ours that seemed lost has arrived.
                self._read = False
        raise SwapConflict(f"{self._store.uri(self._page)} cannot be written")
