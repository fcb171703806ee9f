"""The run's budget, over steps and attempts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_agent_provider.agents.contract import Usage
from airflow_agent_provider.agents.failures import BudgetExceeded, InvalidDefinition
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.hooks.artifacts import ArtifactStore, open_store
from airflow_agent_provider.operators.budget import Budget, Ledger


def ledger(store: ArtifactStore, budget: Budget, step: str = "a", number: int = 1) -> Ledger:
    return Ledger(store, AttemptKey(StepKey("dag", "run", step), number), budget)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store(tmp_path.as_uri())


def test_without_a_budget_nothing_is_written(store: ArtifactStore) -> None:
    page = ledger(store, Budget())
    page.check()
    page.record(Usage(10**9, 0, 10**9, cost=None), None)
    assert list(store.keys("")) == []


def test_steps_and_attempts_add_up(store: ArtifactStore) -> None:
    budget = Budget(tokens=100)
    ledger(store, budget).record(Usage(30, cost=0.1), "m")
    ledger(store, budget, number=2).record(Usage(30, cost=0.1), "m")
    other = ledger(store, budget, step="b")
    other.check()
    other.record(Usage(39, cost=0.1), "m")
    with pytest.raises(BudgetExceeded, match=r"100 tokens is spent: 100 tokens, 0\.3000 USD"):
        other.record(Usage(40, cost=0.1), "m")
    # The next attempt does not even start.
    with pytest.raises(BudgetExceeded):
        ledger(store, budget, step="c").check()
    # With more to spend it goes on.
    ledger(store, Budget(tokens=101), step="c").check()


def test_an_attempt_overwrites_its_own_page(store: ArtifactStore) -> None:
    page = ledger(store, Budget(usd=1.0))
    for tokens in (10, 20, 30):
        page.record(Usage(tokens, cost=tokens / 100), "m")
    assert len(list(store.keys(""))) == 1
    # The second half of a deferred attempt goes on with the page.
    ledger(store, Budget(usd=1.0)).record(Usage(40, cost=0.4), "m")
    assert len(list(store.keys(""))) == 1
    with pytest.raises(BudgetExceeded, match="budget of 1 USD is spent"):
        page.record(Usage(99, cost=1.0), "m")


def test_an_unknown_cost_is_no_small_cost(store: ArtifactStore) -> None:
    with pytest.raises(InvalidDefinition, match="the model m costs is unknown"):
        ledger(store, Budget(usd=1.0)).record(Usage(10), "m")
    ledger(store, Budget(tokens=100), step="b").record(Usage(10), "m")
    with pytest.raises(BudgetExceeded, match="and an unknown cost"):
        ledger(store, Budget(tokens=15), step="c").check()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50)), max_size=12))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_stops_at_the_first_event_that_reaches_the_budget(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int]]
) -> None:
    store = open_store(tmp_path_factory.mktemp("store").as_uri())
    spent = dict.fromkeys("abc", 0)
    stopped = False
    for step, tokens in events:
        spent[step] += tokens
        # Each event by an attempt that has just started, which reads what the others have spent.
        page = ledger(store, Budget(tokens=100), step)
        try:
            page.record(Usage(spent[step], cost=0.0), "m")
        except BudgetExceeded:
            stopped = True
            break
    assert stopped == (sum(spent.values()) >= 100)
