"""Eight runs of the soak, of which ``make soak`` does a hundred: killed, and as if undisturbed."""

from __future__ import annotations

import pytest

from tests.e2e.live import Live
from tests.e2e.soak.__main__ import summary
from tests.e2e.soak.driver import soak
from tests.e2e.soak.kills import Target, plan_kills


@pytest.mark.timeout(1200)
def test_killed_at_random_a_run_ends_as_if_undisturbed(live_airflow: Live) -> None:
    reports = soak(live_airflow, range(8), at_once=4)
    told = summary(reports)
    assert not [(report.seed, report.faults) for report in reports if report.faults], told
    assert sum(len(report.killed) for report in reports) >= len(reports), told


@pytest.mark.parametrize("target", Target)
def test_a_hundred_seeds_have_kills_of_every_kind_in_every_step(target: Target) -> None:
    steps = {"plan": 2, "implement": 3, "test": 2, "review": 0}
    kills = [kill for seed in range(100) for kill in plan_kills(seed, steps)]
    assert {kill.step for kill in kills if kill.target is target} == set(steps)
    assert plan_kills(7, steps) == plan_kills(7, steps)
