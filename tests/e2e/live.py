"""A running Airflow for the end-to-end tests, and what they do with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from airflow_agent_provider.hooks.artifacts import ArtifactStore, open_store
from infra.local.api import AirflowApi
from infra.local.aws import ROOT
from infra.local.stack import Stack

HERE = Path(__file__).parent
#: Much shorter than Airflow's own, so that a killed supervisor is noticed within a test.
HEARTBEATS = {
    "scheduler.task_instance_heartbeat_timeout": "30",
    "scheduler.task_instance_heartbeat_timeout_detection_interval": "5",
}
#: Seconds, instead of 60, until a step's lease is taken from an attempt that lives no more.
LEASE_TTL = 15
#: New, mended and broken files are noticed soon.
PARSING = {
    "dag_processor.refresh_interval": "5",
    "dag_processor.min_file_process_interval": "5",
}
_GIT = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


@dataclass(frozen=True)
class Live:
    """A running Airflow with scripted agents.

    :param stack: its processes.
    :param dags: its DAG folder; a test may add files to it.
    """

    stack: Stack
    dags: Path

    @property
    def api(self) -> AirflowApi:
        """Airflow's public API."""
        return self.stack.api

    def store(self) -> ArtifactStore:
        """Return the artifact store, as a test process reaches it."""
        if self.stack.stores:
            os.environ["AIRFLOW_CONN_AWS_DEFAULT"] = self.stack.aws.connection()
        return open_store(self.stack.artifacts)

    def repository(self, name: str, files: Mapping[str, str] | None = None) -> Path:
        """Return a new bare repository with one commit on ``main``.

        :param files: text by path; a README where empty.
        """
        bare = self.stack.folder / "repositories" / f"{name}.git"
        make_repository(bare, files or {"README.md": f"# {name}\n"})
        return bare


@contextmanager
def start_live(folder: Path, *, stores: bool = True, **settings: str) -> Iterator[Live]:
    """Start an Airflow that has the project's workflows and those of ``tests/e2e/dags``.

    The rehearsal script is the seed's, with the steps of ``tests/e2e/rehearsal.yaml`` added.

    :param folder: what it writes; nobody else's.
    :param stores: False keeps artifacts in local files, without a mirror.
    :param settings: more of Airflow's settings, as ``section__option="value"``.
    """
    for name in ("dags", "prompts"):
        for source in (ROOT / name, HERE / name):
            if source.is_dir():
                shutil.copytree(source, folder / name, dirs_exist_ok=True)
    script = folder / "rehearsal.yaml"
    sources = (ROOT / "infra" / "rehearsals" / "feature-implementation.yaml", HERE / script.name)
    steps = [yaml.safe_load(source.read_text())["steps"] for source in sources]
    script.write_text(yaml.safe_dump({"steps": {**steps[0], **steps[1]}}))
    more = {name.replace("__", "."): value for name, value in settings.items()}
    with Stack(
        folder / "stack",
        dags=folder / "dags",
        script=script,
        stores=stores,
        settings={**HEARTBEATS, **PARSING, "agents.lease_ttl": str(LEASE_TTL), **more},
    ) as stack:
        yield Live(stack, folder / "dags")


def make_repository(bare: Path, files: Mapping[str, str]) -> None:
    """Make a bare repository with one commit on ``main``.

    :param bare: where it shall be.
    :param files: text by path.
    """
    tree = bare.with_suffix(".tree")
    for path, text in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    git(tree, "init", "-q", "-b", "main")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "Start")
    git(tree, "clone", "-q", "--bare", ".", str(bare))
    shutil.rmtree(tree)


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, and return what it prints.

    :raises AssertionError: if it fails; the text has its words.
    """
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, **_GIT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"git {' '.join(arguments)}: {done.stderr}"
    return done.stdout
