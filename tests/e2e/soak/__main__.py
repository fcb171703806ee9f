"""``make soak``: kill -9 at random moments, run after run, and what has to hold all the same."""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from airflow_agent_provider.agents.registry import AGENTS
from infra.local.aws import ROOT
from infra.local.processes import end_leftovers
from infra.local.report import table
from tests.e2e.live import start_live
from tests.e2e.soak.driver import Report, soak
from tests.e2e.soak.kills import Target

FOLDER = ROOT / ".demo" / "soak"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak and print what came of it; return 1 if anything does not hold."""
    options = _parse(arguments)
    end_leftovers(options.folder)
    shutil.rmtree(options.folder, ignore_errors=True)
    seeds = range(options.seed, options.seed + options.runs)
    print(f"{options.runs} runs, seeds {seeds[0]} to {seeds[-1]}; starting Airflow", flush=True)
    began = time.monotonic()
    with start_live(options.folder) as live:
        reports = soak(
            live, seeds, agents=options.agents, at_once=options.at_once, say=lambda r: _say(r)
        )
    print(f"\n{summary(reports)}\n{time.monotonic() - began:.0f} s in all", flush=True)
    faulty = [report for report in reports if report.faults]
    for report in faulty:
        print(
            f"\nTo replay it: make soak SOAK_RUNS=1 SOAK_SEED={report.seed} "
            f"SOAK_AGENTS={','.join(options.agents)}"
        )
    return 1 if faulty else 0


def summary(reports: Sequence[Report]) -> str:
    """Return the figures of all runs, as text."""
    killed = [each for report in reports for each in report.killed]
    rows: list[tuple[str, ...]] = [("killed", "times", "retried", "seconds until then (median)")]
    for target in Target:
        hits = [each for each in killed if each.kill.target is target]
        waits = [each.retried_after for each in hits if each.retried_after is not None]
        middle = f"{statistics.median(waits):.1f}" if waits else "-"
        rows.append((target.value, str(len(hits)), str(len(waits)), middle))
    seconds = sorted(report.seconds for report in reports if report.seconds)
    steps = Counter(each.kill.step for each in killed)
    lines = [
        table(rows),
        "",
        f"{sum(not report.faults for report in reports)} of {len(reports)} runs as if undisturbed",
        f"{len(killed)} kills: {', '.join(f'{step} {n}' for step, n in sorted(steps.items()))}; "
        f"{sum(len(report.missed) for report in reports)} came too late",
        f"{sum(sum(report.tries.values()) for report in reports)} attempts of "
        f"{sum(len(report.tries) for report in reports)} steps",
    ]
    if seconds:
        lines.append(
            f"a run took {seconds[0]:.0f} to {seconds[-1]:.0f} s, median "
            f"{statistics.median(seconds):.0f} s"
        )
    return "\n".join(lines)


def _say(report: Report) -> None:
    kills = "; ".join(map(str, (each.kill for each in report.killed))) or "nothing was killed"
    tries = sum(report.tries.values())
    verdict = "FAULT" if report.faults else "green"
    print(f"{verdict}  seed {report.seed}  {tries} attempts  {report.seconds:4.0f} s  {kills}")
    for fault in report.faults:
        print(f"       {fault}")
    sys.stdout.flush()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="how many runs")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first run; the next has one more"
    )
    parser.add_argument("--agents", type=_agents, default=["codex"], help="names, by commas")
    parser.add_argument("--at-once", type=int, default=3, help="how many runs go on at once")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    return parser.parse_args(arguments)


def _agents(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    local = [name for name, spec in AGENTS.items() if spec.capabilities.local]
    if unknown := [name for name in names if name not in local]:
        raise argparse.ArgumentTypeError(f"{unknown} run on no worker; there are: {local}")
    return names


if __name__ == "__main__":
    sys.exit(main())
