"""What makes a step's outcome honest, through real Airflow and the real Codex program."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from airflow_agent_provider.rehearsal.cursor_server import CursorServer
from airflow_agent_provider.rehearsal.model_server import ModelServer
from airflow_agent_provider.rehearsal.script import Script
from tests.e2e.bench import Bench, one_step
from tests.e2e.live import git

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("airflow_db")]

FILES = {"README.md": "# Project\n", "src/app.py": "x = 1\n", ".gitignore": "cache/\n"}


def prompts(bench: Bench) -> list[str]:
    """Return the last user message of each request to the model."""
    assert bench.server is not None
    found = []
    for entry in bench.server.requests:
        if entry.method == "POST":
            users = [i for i in entry.body["input"] if i.get("role") == "user"]
            found.append("".join(part.get("text", "") for part in users[-1]["content"]))
    return found


def run(bench: Bench, **arguments: Any) -> dict[str, Any]:
    """Run one step on a repository; return its last outcome."""
    remote = bench.repository(FILES)
    one_step(bench, repository=str(remote), **arguments).test()
    outcome: dict[str, Any] = bench.outcomes()["work"]
    return outcome


def test_a_failed_check_is_told_in_the_session_and_mended(bench: Bench) -> None:
    bench.rehearse("""
      work:
        - write: {path: src/app.py, content: "x = broken"}
        - say: Done.
        - write: {path: src/app.py, content: "x = 2\\n"}
        - say: Mended.
    """)
    outcome = run(bench, verify=["python3 src/app.py", "mkdir -p litter cache; touch litter/x"])
    assert outcome["state"] == "success"
    assert outcome["attempt"] == 1
    assert outcome["boxed"] is True
    repair = next(text for text in prompts(bench) if "not accepted yet" in text)
    assert "the check `python3 src/app.py` failed with exit code 1" in repair
    assert "NameError: name 'broken' is not defined" in repair
    logs = {name: uri for name, uri in outcome["artifacts"].items() if name.startswith("verify/")}
    assert sorted(logs) == [f"verify/{n:02d}.log" for n in (1, 2, 3, 4)]
    assert "NameError" in bench.artifact(logs["verify/01.log"])
    assert bench.artifact(logs["verify/03.log"]).startswith("$ python3 src/app.py\n\nexit code 0")
    # What the checks leave behind is no part of the work.
    files = git(bench.folder / "remote.git", "ls-tree", "-r", "--name-only", outcome["branch"])
    assert files.split() == [".gitignore", "README.md", "src/app.py"]


def test_repair_has_its_rounds_and_then_the_class_tells(bench: Bench) -> None:
    bench.rehearse("work: [{say: One.}, {say: Two.}, {say: Three.}, {say: Four.}]")
    outcome = run(bench, verify=["echo no luck; exit 3"], repair=2)
    assert outcome["failure"]["failure_class"] == "VerificationFailed"
    assert "failed with exit code 3" in outcome["failure"]["reason"]
    assert outcome["failure"]["raw"] == "no luck"
    assert sum("not accepted yet" in text for text in prompts(bench)) == 2


@pytest.mark.parametrize(
    ("arguments", "failure_class", "words"),
    [
        ({"allow_paths": ["docs/**"]}, "PolicyViolation", "src/new.py"),
        ({"deny_paths": ["src"]}, "PolicyViolation", "src/new.py"),
        ({"changes": "forbidden"}, "PolicyViolation", "may change nothing"),
        ({"changes": "required", "verify": "true"}, None, ""),
        ({"allow_paths": ["src/*.py"], "deny_paths": [".github/**"]}, None, ""),
    ],
)
def test_what_may_be_changed(
    bench: Bench, arguments: dict[str, Any], failure_class: str | None, words: str
) -> None:
    bench.rehearse("""
      work:
        - write: {path: src/new.py, content: "y = 1\\n"}
        - say: Done.
    """)
    outcome = run(bench, **{**arguments, "verify": arguments.get("verify", []) and ["true"]})
    failure = outcome["failure"] or {"failure_class": None, "reason": ""}
    assert failure["failure_class"] == failure_class
    assert words in failure["reason"]


def test_changes_that_are_required(bench: Bench) -> None:
    bench.rehearse("work: [{say: Done.}, {run: echo y > src/y.py}, {say: Now.}]")
    outcome = run(bench, changes="required")
    assert outcome["state"] == "success"
    assert any("nothing was changed" in text for text in prompts(bench))


def test_a_forbidden_change_can_be_undone_in_the_session(bench: Bench) -> None:
    bench.rehearse("""
      work:
        - run: echo x > .github && echo y > src/y.py
        - say: Done.
        - run: rm .github
        - say: Undone.
    """)
    outcome = run(bench, deny_paths=[".github"])
    assert outcome["state"] == "success"


def test_setup_makes_the_workspace_ready_and_is_no_work(bench: Bench) -> None:
    bench.rehearse("""
      work:
        - run: mytool > src/made.txt
        - say: Done.
    """)
    outcome = run(
        bench,
        setup_commands=[
            "mkdir -p .venv/bin && echo 'echo tool $0' > .venv/bin/mytool && chmod +x .venv/bin/*",
            "echo changed >> README.md; touch $HOME/.cached; cat README.md",
        ],
        setup_files=["src/app.py"],
        verify=["mytool && ! test -e $HOME/.cached"],
    )
    assert outcome["state"] == "success", outcome
    tree = git(bench.folder / "remote.git", "ls-tree", "-r", "--name-only", outcome["branch"])
    assert tree.split() == [".gitignore", "README.md", "src/app.py", "src/made.txt"]
    assert (
        git(bench.folder / "remote.git", "show", f"{outcome['branch']}:README.md") == "# Project\n"
    )
    assert "setup/02.log" in outcome["artifacts"]


def test_a_setup_that_fails_is_told_before_any_agent_starts(bench: Bench) -> None:
    bench.rehearse("work: [{say: Done.}]")
    outcome = run(bench, setup_commands=["echo cannot; exit 4"])
    assert outcome["failure"]["failure_class"] == "AgentFailed"
    assert (
        "setup command `echo cannot; exit 4` failed with exit code 4"
        in (outcome["failure"]["reason"])
    )
    assert outcome["failure"]["raw"] == "cannot"
    assert prompts(bench) == []


def test_a_spent_budget_is_fatal_and_counts_what_was_spent_before(bench: Bench) -> None:
    bench.rehearse("""
      work:
        - run: echo 1 > one
        - run: sleep 30
        - say: Done.
    """)
    outcome = run(bench, budget_tokens=10, retries=3)
    assert outcome["failure"]["failure_class"] == "BudgetExceeded"
    assert outcome["attempt"] == 1
    assert "budget of 10 tokens is spent" in outcome["failure"]["reason"]
    pages = [key for key in bench.store.keys("") if "/budget/" in key]
    (page,) = (json.loads((bench.store.read(key) or (b"", ""))[0]) for key in pages)
    assert page["tokens"] >= 10
    assert page["unknown"] is False
    # What was under way when the first usage came may overshoot.
    assert len(prompts(bench)) <= 2


def test_a_budget_in_usd_needs_a_known_price(bench: Bench) -> None:
    bench.rehearse("work: [{say: Done.}]")
    assert run(bench, budget_usd=5.0)["state"] == "success"
    bench.monkeypatch.setenv("AIRFLOW__AGENTS__WORKSPACES", str(bench.folder / "w2"))
    bench.rehearse("work: [{say: Done.}]")
    one_step(bench, budget_usd=5.0, model="never-heard-of").test()
    failures = [
        json.loads(bench.store.get(key))["failure"]
        for key in bench.store.keys("")
        if key.endswith("/outcome.json")
    ]
    (failure,) = filter(None, failures)
    assert failure["failure_class"] == "InvalidDefinition"
    assert "never-heard-of" in failure["reason"]


def test_at_the_end_of_its_time_the_agent_wraps_up(bench: Bench) -> None:
    bench.rehearse("""
      work:
        - run: test -e half.txt || { echo half > half.txt; sleep 60; }
        - run: echo notes > notes.txt
        - say: Half is done.
    """)
    # So that the time left for it does not depend on how fast this machine is.
    bench.monkeypatch.setattr("airflow_agent_provider.operators.local.WRAP_UP_SHARE", 0.2)
    outcome = run(bench, timeout=timedelta(seconds=30))
    assert outcome["failure"]["failure_class"] == "TimedOut"
    assert "wrapped up" in outcome["failure"]["reason"]
    assert any("Start nothing new" in text for text in prompts(bench))
    bundle = bench.store.get(bench.store.key(outcome["artifacts"]["checkpoint.bundle"]))
    assert bundle.startswith(b"# v2 git bundle")


def test_the_next_agent_goes_on_where_one_is_unavailable(bench: Bench) -> None:
    bench.rehearse("""
      work:
        - run: echo kept > kept.txt
        - fail: {status: 503, times: 100}
    """)
    outcome = run(
        bench,
        options={"retries": 0},
        fallbacks=[{"agent": "codex", "agent_conn_id": "codex_other", "options": {"retries": 0}}],
    )
    assert outcome["failure"]["failure_class"] == "AuthenticationFailed"
    assert "codex_other" in outcome["failure"]["reason"]


@pytest.mark.parametrize("deferrable", [True, False])
def test_an_agent_on_the_worker_goes_on_for_one_at_its_vendor(
    bench: Bench, cursor: Callable[[Script], CursorServer], deferrable: bool
) -> None:
    steps = {"work": [{"fail": {"status": 503, "times": None}}]}
    cursor(Script.model_validate({"steps": steps}))
    bench.rehearse("work: [{run: echo local > made.txt}, {say: Done.}]")
    outcome = run(
        bench,
        operator="cursor.CursorAgentOperator",
        fallbacks=[{"agent": "codex"}],
        deferrable=deferrable,
        changes="required",
    )
    assert outcome["state"] == "success", outcome
    assert outcome["agent"] == "codex"
    assert {"prompt.md", "prompt.codex.md"} <= set(outcome["artifacts"])
    hosted, local = (
        bench.artifact(outcome["artifacts"][name]) for name in ("prompt.md", "prompt.codex.md")
    )
    assert "Commit what you change" in hosted
    assert "Work in the current directory" in local


def test_the_work_of_one_agent_is_the_start_of_the_next(bench: Bench) -> None:
    bench.rehearse("""
      work:
        - run: echo kept > kept.txt
        - fail: {status: 503, times: null}
    """)
    other = ModelServer(
        Script.model_validate(
            {"steps": {"work": [{"run": "cat kept.txt && echo more >> kept.txt"}, {"say": "Yes."}]}}
        )
    ).start()
    connection = {
        "conn_type": "codex",
        "host": f"{other.url}/v1",
        "password": "sk-rehearsal-0000000000",
        "extra": {"model": "gpt-5.5"},
    }
    bench.monkeypatch.setenv("AIRFLOW_CONN_CODEX_OTHER", json.dumps(connection))
    try:
        outcome = run(
            bench,
            options={"retries": 0, "patience": 2},
            fallbacks=[{"agent": "codex", "agent_conn_id": "codex_other"}],
        )
    finally:
        texts = [str(entry.body) for entry in other.requests]
        other.stop()
    assert outcome["state"] == "success", outcome
    assert git(bench.folder / "remote.git", "show", f"{outcome['branch']}:kept.txt") == (
        "kept\nmore\n"
    )
    assert "Another agent began with this step" in texts[0] or "earlier attempt" in texts[0]
