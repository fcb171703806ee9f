"""The conformance table: every agent against every behaviour, as the suite finds them now.

``make conformance`` runs the suite and prints it, Markdown; it exits with 1 unless all is green.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conformance.rigs import RIGS

_SUITE = [str(Path(__file__).with_name(f"test_agent_{part}.py")) for part in ("hooks", "ends")]
_MARKS = {"passed": "✓", "failed": "✗", "skipped": "–"}
#: Of a behaviour that several tests show for one agent, the worst counts.
_WORST = ("failed", "skipped", "passed")


class Results:
    """Collects the suite's results; a plugin of pytest."""

    def __init__(self) -> None:
        #: Outcomes by behaviour and agent.
        self.found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a result; of tests in other processes, too."""
        found = _name(report.nodeid)
        if found is not None and (report.when == "call" or not report.passed):
            behaviour, agent = found
            self.found[behaviour][agent].add(report.outcome)

    def table(self) -> str:
        """Return the table, Markdown."""
        agents = sorted({agent for row in self.found.values() for agent in row})
        lines = [f"| behaviour | {' | '.join(agents)} |", "|---|" + "---|" * len(agents)]
        for behaviour, row in self.found.items():
            cells = [_mark(row[agent]) for agent in agents]
            lines.append(f"| {behaviour} | {' | '.join(cells)} |")
        return "\n".join(lines)


def _name(nodeid: str) -> tuple[str, str] | None:
    """Return the behaviour that a test shows, and the agent it is shown for, if there is one."""
    match = re.search(r"::test_(?P<function>\w+)\[(?P<case>.*)\]$", nodeid)
    if match is None:
        return None
    # The longest, since one agent's name may be the beginning of another's.
    for agent in sorted(RIGS, key=len, reverse=True):
        case = f"-{match['case']}-"
        if f"-{agent}-" in case:
            words = match["function"].replace("_", " ")
            rest = case.replace(f"-{agent}-", "-", 1).strip("-")
            plain = rest if rest and not re.search(r"\d+-|limits", rest) else ""
            return (f"{words}: {plain}" if plain else words), agent
    return None


def _mark(outcomes: set[str]) -> str:
    return next((_MARKS[outcome] for outcome in _WORST if outcome in outcomes), "")


def main() -> int:
    """Run the suite and print the table; return pytest's exit code."""
    results = Results()
    code = pytest.main([*_SUITE, "-q", "--no-header", *sys.argv[1:]], plugins=[results])
    sys.stdout.write(f"\n{results.table()}\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
