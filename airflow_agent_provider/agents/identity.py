"""Who an attempt is: the names that paths, git refs and mirror keys are made of."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_SLUG_LENGTH = 60


def slug(text: str) -> str:
    """Return a readable name for ``text`` that paths, S3 keys and git refs accept.

    Airflow's run ids hold characters that git refuses (``:``, ``+``), and two run ids may differ
    only in such characters. So the slug ends in eight hexadecimal digits of the text's SHA-256.

    :param text: any text, for example a run id.
    """
    readable = _UNSAFE.sub("-", text).strip("-")[:_SLUG_LENGTH].rstrip("-")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{readable}-{digest}" if readable else digest


@dataclass(frozen=True, order=True)
class StepKey:
    """One step of one workflow run.

    :param dag_id: the workflow's name.
    :param run_id: Airflow's run id.
    :param step_id: the step's id, Airflow's task id.
    :param map_index: the index of a mapped step, -1 for one that is not mapped.
    """

    dag_id: str
    run_id: str
    step_id: str
    map_index: int = -1

    @property
    def run_prefix(self) -> str:
        """The folder of the run, in the artifact store and among the workspaces."""
        return f"{self.dag_id}/{slug(self.run_id)}"

    @property
    def prefix(self) -> str:
        """The folder of the step, in the artifact store and among the workspaces."""
        return f"{self.run_prefix}/{self.step_id}/{self.map_index}"

    @property
    def run_branch(self) -> str:
        """The branch that has one commit per succeeded step of the run."""
        return f"agents/{_ref_component(self.dag_id)}/{slug(self.run_id)}"


@dataclass(frozen=True, order=True)
class AttemptKey:
    """One try of a step.

    :param step: the step.
    :param number: Airflow's try number, from 1. It grows over retries and clears, so that of two
        attempts of a step the one with the greater number is the newer.
    """

    step: StepKey
    number: int

    @property
    def prefix(self) -> str:
        """The folder of the attempt in the artifact store."""
        return f"{self.step.prefix}/{self.number}"

    @property
    def ref(self) -> str:
        """The git ref that keeps the attempt's checkpoint commits."""
        step = self.step
        name = f"{_ref_component(step.dag_id)}/{slug(step.run_id)}/{_ref_component(step.step_id)}"
        return f"refs/agents/attempts/{name}/{step.map_index}/{self.number}"


def _ref_component(name: str) -> str:
    # git refuses "..", a leading or trailing dot and the ending ".lock"; Airflow's ids allow them.
    safe = ".." not in name and not name.startswith(".") and not name.endswith((".", ".lock"))
    return name if safe and not _UNSAFE.search(name.replace(".", "")) else slug(name)
