"""The conformance table: every agent against every behaviour, as the suite finds them now.

``make conformance`` runs the suite and prints it, Markdown; it exits with 1 unless all is green.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import pytest

_SUITE = Path(__file__).with_name("test_agent_hooks.py")
#: Parameters of the suite that name the agent.
_RIG_PARAMETERS = ("rig", "local", "name")
_MARKS = {"passed": "✓", "failed": "✗", "skipped": "–"}
#: Of a behaviour that several tests show for one agent, the worst counts.
_WORST = ("failed", "skipped", "passed")


class Results:
    """Collects the suite's results; a plugin of pytest."""

    def __init__(self) -> None:
        #: Outcomes by behaviour and agent.
        self.found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self._agents: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note which behaviour of which agent each test shows."""
        for item in items:
            call = getattr(item, "callspec", None)
            if call is None:
                continue
            agent = next((call.params[p] for p in _RIG_PARAMETERS if p in call.params), None)
            if agent is not None:
                self._agents[item.nodeid] = (_behaviour(item, call), str(agent))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a result."""
        if report.nodeid in self._agents and (report.when == "call" or not report.passed):
            behaviour, agent = self._agents[report.nodeid]
            self.found[behaviour][agent].add(report.outcome)

    def table(self) -> str:
        """Return the table, Markdown."""
        agents = sorted({agent for row in self.found.values() for agent in row})
        lines = [f"| behaviour | {' | '.join(agents)} |", "|---|" + "---|" * len(agents)]
        for behaviour, row in self.found.items():
            cells = [_mark(row[agent]) for agent in agents]
            lines.append(f"| {behaviour} | {' | '.join(cells)} |")
        return "\n".join(lines)


def _behaviour(item: pytest.Item, call: object) -> str:
    function = getattr(item, "originalname", item.name)
    words = function.removeprefix("test_").replace("_", " ")
    case = getattr(call, "params", {}).get("case")
    return f"{words}: {case}" if case else words


def _mark(outcomes: set[str]) -> str:
    return next((_MARKS[outcome] for outcome in _WORST if outcome in outcomes), "")


def main() -> int:
    """Run the suite and print the table; return pytest's exit code."""
    results = Results()
    code = pytest.main(
        [str(_SUITE), "-q", "--no-header", "-p", "no:xdist", *sys.argv[1:]], plugins=[results]
    )
    sys.stdout.write(f"\n{results.table()}\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
