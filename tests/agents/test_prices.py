"""What tokens cost by the price list."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from airflow_agent_provider.agents.contract import Usage
from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.agents.prices import load_prices

USAGE = Usage(input_tokens=1_000_000, cached_tokens=400_000, output_tokens=100_000)


@pytest.mark.parametrize(
    ("model", "cost"),
    [
        ("gpt-5.5", 0.6 * 5 + 0.4 * 0.5 + 0.1 * 30),
        # A dated release, and a gateway's name of it.
        ("gpt-5.5-2026-04-01", 0.6 * 5 + 0.4 * 0.5 + 0.1 * 30),
        ("openai/gpt-5.5", 0.6 * 5 + 0.4 * 0.5 + 0.1 * 30),
        # The longest name that fits.
        ("gpt-5.4-mini", 0.6 * 0.75 + 0.4 * 0.075 + 0.1 * 4.5),
        ("claude-sonnet-5-5", 0.6 * 2 + 0.4 * 0.1 + 0.1 * 10),
        ("gpt-5.50", None),
        ("never-heard-of", None),
        ("", None),
        (None, None),
    ],
)
def test_a_model_has_its_price_or_none(model: str | None, cost: float | None) -> None:
    found = load_prices().cost(model, USAGE)
    assert found == (None if cost is None else pytest.approx(cost))


def test_the_list_says_when_it_was_made() -> None:
    prices = load_prices()
    assert datetime.date.fromisoformat(prices.date) > datetime.date(2026, 1, 1)
    assert prices.sources


def test_a_list_of_ones_own_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    own = {"mine": {"input": 1, "cached": 0, "output": 2}}
    own["gpt-5.5"] = {"input": 2, "cached": 2, "output": 2}
    file.write_text(json.dumps({"date": "2026-11-01", "models": own}))
    prices = load_prices(str(file))
    assert prices.cost("mine", USAGE) == pytest.approx(0.6 + 0.2)
    assert prices.cost("gpt-5.5", USAGE) == pytest.approx(2.2)
    assert prices.cost("gpt-5.4", USAGE) == load_prices().cost("gpt-5.4", USAGE)


@pytest.mark.parametrize("text", ["", "[]", '{"date": "x"}', '{"date": "x", "models": {"m": {}}}'])
def test_a_bad_list_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prices.json"
    file.write_text(text)
    with pytest.raises(InvalidDefinition, match="is no price list; it should look like") as raised:
        load_prices(str(file))
    assert raised.value.raw
    with pytest.raises(InvalidDefinition, match="no price list"):
        load_prices(str(tmp_path / "missing.json"))
