"""What tokens cost, where the vendor does not say: list prices from one data file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_agent_provider.agents.contract import Usage
from airflow_agent_provider.agents.failures import InvalidDefinition

_MILLION = 1_000_000


class Price(BaseModel):
    """USD for a million tokens of one model.

    :param input: tokens read.
    :param cached: tokens read from the vendor's cache.
    :param output: tokens written, the reasoning ones included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: float = Field(ge=0)
    cached: float = Field(ge=0)
    output: float = Field(ge=0)

    def cost(self, usage: Usage) -> float:
        """Return the USD that ``usage`` costs."""
        fresh = usage.input_tokens - usage.cached_tokens
        return (
            fresh * self.input
            + usage.cached_tokens * self.cached
            + usage.output_tokens * self.output
        ) / _MILLION


class Prices(BaseModel):
    """Prices by model.

    :param date: when they were looked up, as an ISO date.
    :param models: by the vendor's model name; an entry also serves the names that begin with it
        and a hyphen, as dated releases do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str
    sources: tuple[str, ...] = ()
    models: Mapping[str, Price]

    def cost(self, model: str | None, usage: Usage) -> float | None:
        """Return the USD that ``usage`` of ``model`` costs, None where there is no price."""
        price = self._price(model or "")
        return None if price is None else price.cost(usage)

    def _price(self, model: str) -> Price | None:
        # Gateways put the vendor's name first.
        name = model.rpartition("/")[2]
        fitting = [known for known in self.models if name == known or name.startswith(f"{known}-")]
        return self.models[max(fitting, key=len)] if fitting else None


def load_prices(override: str = "") -> Prices:
    """Return the prices of the data file, with those of another file before them.

    :param override: path of a JSON file of the same form; empty for none.
    :raises InvalidDefinition: if that file cannot be used.
    """
    own = _own()
    if not override:
        return own
    try:
        more = Prices.model_validate_json(Path(override).read_bytes())
    except (OSError, ValidationError) as error:
        raise InvalidDefinition(
            f"[agents] prices = {override} is no price list; it should look like "
            f'{{"date": "2026-01-31", "models": {{"<model>": {{"input": 1.25, "cached": 0.125, '
            f'"output": 10}}}}}}',
            raw=str(error),
        ) from error
    return Prices(date=more.date, sources=more.sources, models={**own.models, **more.models})


@cache
def _own() -> Prices:
    values: Any = json.loads(Path(__file__).with_name("prices.json").read_bytes())
    return Prices.model_validate(values)
