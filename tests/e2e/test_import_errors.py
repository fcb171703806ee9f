"""A broken workflow in a running Airflow: shown under its own name, and it costs no other."""

from __future__ import annotations

from infra.local.api import wait_for
from tests.e2e.live import Live

BROKEN = """\
name: broken
schedule: 61 * * * *
steps:
  - id: plan
    agent: cursr
    prompt: prompts/plan-feature.md
  - id: implement
    agent: codex
    promt: Do it.
    depends_on: plna
"""
MENDED = """\
name: broken
steps:
  - id: plan
    agent: cursor
    prompt: prompts/plan-feature.md
"""


def test_a_broken_workflow_is_an_import_error_of_its_own(live_airflow: Live) -> None:
    live = live_airflow
    live.api.wait_for_dag("feature-implementation")
    before = {dag["dag_id"] for dag in live.api.dags()}
    file = live.dags / "broken.yaml"
    file.write_text(BROKEN)
    try:
        text = wait_for(lambda: shown(live), 120, lambda: str(live.api.import_errors()))
        for line in (
            "broken.yaml:2:11: ",
            "broken.yaml:5:12: ",
            "did you mean 'cursor'",
            "broken.yaml:9:5: ",
            "did you mean 'prompt'",
            "broken.yaml:10:17: ",
            "did you mean 'plan'",
        ):
            assert line in text, text
        assert {dag["dag_id"] for dag in live.api.dags()} == before
        checked = live.stack.airflow("agents", "validate", str(file))
        assert checked.returncode == 1
        assert checked.stdout.count("broken.yaml:") >= 4

        file.write_text(MENDED)
        live.api.wait_for_dag("broken")
        wait_for(lambda: shown(live) is None or None, 120, lambda: "the error is still shown")
        assert {dag["dag_id"] for dag in live.api.dags()} == {*before, "broken"}
    finally:
        file.unlink()


def shown(live: Live) -> str | None:
    """Return Airflow's import error of the broken file."""
    errors = live.api.import_errors()
    return next((e["stack_trace"] for e in errors if e["filename"].endswith("broken.yaml")), None)
