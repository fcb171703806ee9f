"""``make demo`` and ``make up``: the seed workflow on a machine with nothing but Python and git.

Real operators, hooks and agent programs; the models and the vendors' services are scripted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from airflow_agent_provider.agents.identity import StepKey
from airflow_agent_provider.rehearsal.script import ScriptError, load_script
from infra.local import report
from infra.local.api import ApiError, NotInTime
from infra.local.aws import ROOT, MinistackMissing
from infra.local.processes import FolderInUse, ProcessFailed, end_leftovers, tail
from infra.local.repository import RepositoryUnusable, make_clone
from infra.local.stack import BUCKET, TABLE, USER, Stack

WORKFLOW = "feature-implementation"
SCRIPT = ROOT / "infra" / "rehearsals" / f"{WORKFLOW}.yaml"
#: Seconds for the whole run; the workflow's own time limits are shorter.
RUN_WITHIN = 1800.0
LOOK_EVERY = 1.0
#: Where ``make up`` shows the UI, if nobody else has the port.
UI_PORT = 8080

_PROBLEMS = (
    ApiError,
    FolderInUse,
    MinistackMissing,
    NotInTime,
    ProcessFailed,
    RepositoryUnusable,
    ScriptError,
    subprocess.TimeoutExpired,
    ValueError,
)


@dataclass(frozen=True)
class Options:
    """What is asked for.

    :param repository: path or URL; empty takes the project's own.
    :param rehearsal: what the scripted models do.
    :param folder: what the demo writes.
    :param stay: stay up after the run until Ctrl-C.
    """

    repository: str
    rehearsal: Path
    folder: Path
    stay: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 if the workflow succeeded, 130 if it was interrupted."""
    options = _parse(arguments)
    _interrupt_on_signals()
    try:
        return _Demo(options).run()
    except KeyboardInterrupt:
        print("\nInterrupted; everything that was started has ended.", flush=True)
        return 130
    except _PROBLEMS as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr, flush=True)
        return 1


class _Demo:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._started = time.monotonic()
        self._stack = Stack(
            options.folder,
            script=options.rehearsal,
            port=UI_PORT if options.stay else None,
        )
        self._repository = options.folder.absolute() / "repository.git"

    def run(self) -> int:
        """Start all, run the workflow, print what it left, end all."""
        load_script(self._options.rehearsal)
        self._clean()
        source = self._options.repository or "the project's own repository"
        self._say(f"clones {source} to {self._repository}")
        branch = make_clone(self._options.repository, self._repository)
        self._say("starts S3 and DynamoDB, the scripted models and Airflow")
        with self._stack, ExitStack() as ending:
            # What ends the processes must not be interrupted itself.
            ending.callback(_ignore_signals)
            self._say(f"Airflow is at {self._stack.url}")
            succeeded = self._run_workflow(branch)
            if self._options.stay:
                self._stay()
        return 0 if succeeded else 1

    def _clean(self) -> None:
        folder = self._options.folder
        if names := end_leftovers(folder):
            self._say(f"ended what an earlier demo left running: {', '.join(names)}")
        if folder.exists():
            shutil.rmtree(folder)

    def _run_workflow(self, branch: str) -> bool:
        api = self._stack.api
        api.wait_for_dag(WORKFLOW)
        run_id = self._trigger(branch)
        self._say(f"run {run_id} has started")
        progress = report.Progress(api, WORKFLOW, run_id, self._say)
        deadline = time.monotonic() + RUN_WITHIN
        while (state := progress.look()) is None:
            if time.monotonic() > deadline:
                raise NotInTime(f"the run has not ended within {RUN_WITHIN:g} s")
            self._check_airflow()
            time.sleep(LOOK_EVERY)
        self._say(f"the run has ended: {state}")
        self._report(run_id, branch)
        return state == "success"

    def _trigger(self, branch: str) -> str:
        conf = json.dumps({"repository": str(self._repository), "ref": branch})
        run_id = f"demo__{datetime.now(UTC):%Y-%m-%dT%H:%M:%S+00:00}"
        command = ("dags", "trigger", WORKFLOW, "--run-id", run_id, "--conf", conf)
        self._say(f"airflow {' '.join(command[:-1])} '{conf}'")
        done = self._stack.airflow(*command, "--output", "json")
        if done.returncode != 0:
            raise ValueError(f"airflow dags trigger failed:\n{done.stderr.strip()[-2000:]}")
        return report.run_id_of(done.stdout)

    def _report(self, run_id: str, branch: str) -> None:
        api, key = self._stack.api, StepKey(WORKFLOW, run_id, "")
        _print("Steps", report.steps_table(api, WORKFLOW, run_id))
        for failure in report.failures(api, WORKFLOW, run_id):
            _print("Failure", failure)
        _print(
            f"Branch {key.run_branch} of {self._repository}",
            report.branch_log(self._repository, key.run_branch, branch),
        )
        self._reconcile(run_id)
        items = self._stack.aws.items(TABLE, f"RUN#{WORKFLOW}#{run_id}")
        _print(f"DynamoDB, table {TABLE}", report.items_table(items))
        prefix = f"artifacts/{key.run_prefix}/"
        keys = self._stack.aws.keys(BUCKET, prefix)
        _print(f"S3, s3://{BUCKET}/{prefix}", "\n".join(key.removeprefix(prefix) for key in keys))

    def _reconcile(self, run_id: str) -> None:
        command = ("agents", "mirror", "reconcile", "--dag-id", WORKFLOW, "--run-id", run_id)
        done = self._stack.airflow(*command)
        if done.returncode != 0:
            raise ValueError(f"airflow {' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")

    def _stay(self) -> None:
        folder = self._options.folder.absolute()
        _print(
            "Airflow stays up",
            f"UI:        {self._stack.url}\n"
            f"User:      {USER}\n"
            f"Password:  {self._stack.password}\n"
            f"Shell:     . {folder}/env && {Path(sys.executable).parent}/airflow dags list\n"
            f"Logs:      {folder}/logs\n"
            "Ctrl-C ends everything.",
        )
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                self._check_airflow()
                time.sleep(LOOK_EVERY)

    def _check_airflow(self) -> None:
        process = self._stack.airflow_process
        if process is not None and not self._stack.processes.running(process):
            raise ProcessFailed(f"Airflow has ended by itself:\n{tail(process.log)}")

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:6.1f} s] {text}", flush=True)


def _print(title: str, text: str) -> None:
    print(f"\n== {title}\n{text}", flush=True)


def _interrupt_on_signals() -> None:
    def interrupt(number: int, frame: object) -> None:
        # The first signal ends the demo; more of them must not disturb its ending.
        _ignore_signals()
        raise KeyboardInterrupt

    for number in _signals():
        signal.signal(number, interrupt)


def _ignore_signals() -> None:
    for number in _signals():
        signal.signal(number, signal.SIG_IGN)


def _signals() -> Iterator[signal.Signals]:
    yield from (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--repository", default="", help="path or URL of a git repository")
    parser.add_argument("--rehearsal", default="", help="what the scripted models do (YAML)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo" / "run")
    parser.add_argument("--stay", action="store_true", help="stay up until Ctrl-C")
    values = parser.parse_args(arguments)
    script = Path(values.rehearsal) if values.rehearsal else SCRIPT
    return Options(values.repository, script, values.folder, values.stay)


if __name__ == "__main__":
    sys.exit(main())
