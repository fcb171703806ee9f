"""``airflow agents render``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from airflow_agent_provider.cli.placeholder import Placeholder
from tests.cli.command import run

pytestmark = pytest.mark.integration

WORKFLOW = """\
name: w
params:
  task: {type: string}
  depth: {type: integer, default: 2}
defaults: {agent: codex}
steps:
  - id: plan
    prompt: prompts/plan.md
    verify: pytest -q
    output:
      path: docs/plan.json
      schema: {properties: {tasks: {type: array, items: {properties: {title: {}}}}}}
  - id: do-it
    prompt: |
      {{ context.who }}: {{ steps.plan.output.tasks | tojson }}
      {% for task in steps.plan.output.tasks %}{{ task.title }};{% endfor %}
    context: {who: "Team {{ params.depth }}"}
    depends_on: plan
    prompt_contract: false
  - {id: lint, run: "echo {{ steps['do-it'].output }} {{ params.task }}", depends_on: do-it}
  - {id: hosted, agent: cursor, prompt: Go on., depends_on: lint}
  - {id: check, prompt: "{{ steps.plan.patch }}", depends_on: plan, prompt_contract: false}
  - {id: ask, approve: Good?, depends_on: check}
"""
PLAN = "Plan {{ params.task }} at depth {{ params.depth }}.\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with a workflow and its prompts."""
    monkeypatch.setenv("AIRFLOW__AGENTS__WORKSPACES", str(tmp_path / "workspaces"))
    monkeypatch.setenv("AIRFLOW__AGENTS__ARTIFACTS", (tmp_path / "artifacts").as_uri())
    for name in ("dags", "prompts"):
        (tmp_path / name).mkdir()
    (tmp_path / "dags" / "w.yaml").write_text(WORKFLOW)
    (tmp_path / "prompts" / "plan.md").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


CONF = ("--conf", '{"task": "it; rm -r ."}')


def test_a_prompt_as_its_agent_would_get_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "render", "dags/w.yaml", "plan", *CONF)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(
        "Plan it; rm -r . at depth 2.\n\n---\n## The contract of this step\n"
    )
    assert "Step: plan of workflow w, run preview\n" in done.out
    assert "to the file `docs/plan.json` (JSON" in done.out
    assert "these commands are run, and must succeed: `pytest -q`." in done.out
    assert not (here / "artifacts").exists()


def test_what_earlier_steps_would_leave_is_shown_as_such(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(capsys, "render", "dags/w.yaml", "do-it", *CONF)
    assert done.out == (
        'Team 2: "«steps.plan.output.tasks»"\n«steps.plan.output.tasks[0].title»;\n'
    )
    assert "--results FILE gives their results" in done.err
    assert run(capsys, "render", "dags/w.yaml", "check", *CONF).out == "«steps.plan.patch»\n"
    done = run(capsys, "render", "dags/w.yaml", "lint", *CONF)
    assert done.out == "echo '«steps['\"'\"'do-it'\"'\"'].output»' 'it; rm -r .'\n"


def test_results_that_are_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = {"plan": {"output": {"tasks": [{"title": "a"}, {"title": "b"}]}}}
    (here / "r.json").write_text(json.dumps(results))
    done = run(capsys, "render", "dags/w.yaml", "do-it", *CONF, "--results", "r.json")
    assert done == (0, 'Team 2: [{"title": "a"}, {"title": "b"}]\na;b;\n', "")


def test_a_hosted_agent_is_told_of_its_own_clone(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without a repository, the same agent works on the worker.
    done = run(capsys, "render", "dags/w.yaml", "hosted", *CONF)
    assert "Work in the current directory, a git working tree" in done.out
    text = WORKFLOW.replace("params:", "repository: https://github.com/a/b\nparams:", 1)
    (here / "dags" / "w.yaml").write_text(text)
    done = run(capsys, "render", "dags/w.yaml", "hosted", *CONF)
    assert "Commit what you change on the branch" in done.out


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", *words],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_files_and_commits_are_those_of_the_repository(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = here / "repository"
    repository.mkdir()
    git(repository, "init", "-q", "-b", "main")
    (repository / "NOTES.md").write_text("Mind the gap.")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "First")
    text = WORKFLOW.replace("params:", f"repository: {repository}\nparams:", 1)
    (here / "dags" / "w.yaml").write_text(text)
    template = "{{ file('NOTES.md') }} {{ run.base }} {{ run.start }}\n"
    (here / "prompts" / "plan.md").write_text(template)
    base = git(repository, "rev-parse", "HEAD")

    done = run(capsys, "render", "dags/w.yaml", "plan", *CONF)

    assert done.out.startswith(f"Mind the gap. {base} {base}\n"), done.err
    assert not list((here / "workspaces" / "w").glob("*")), "the workspace is removed"
    (here / "prompts" / "plan.md").write_text("a\n{{ file('PLAN.md') }}\n")
    done = run(capsys, "render", "dags/w.yaml", "plan", *CONF)
    assert (done.status, done.out) == (1, "")
    assert "step 'plan': output PLAN.md" in done.err
    # What is not there yet, a step before may be to write.
    text = text.replace("Go on.", "\"{{ file('PLAN.md') }} {{ run.start }}\"")
    (here / "dags" / "w.yaml").write_text(text.replace("agent: cursor, ", ""))
    done = run(capsys, "render", "dags/w.yaml", "hosted", *CONF)
    assert done.out.startswith("«file('PLAN.md')» «run.start»\n"), done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plann", *CONF), "dags/w.yaml: unknown step 'plann'; did you mean 'plan'?"),
        (("ask", *CONF), "dags/w.yaml: step 'ask' has neither a prompt nor a command"),
        (("plan",), "--conf: parameter 'task': it has no default, so give it a value"),
        (
            ("plan", "--conf", '{"task": "x", "depth": "2", "dept": 1}'),
            "--conf: unknown parameter 'dept'; did you mean 'depth'?\n"
            "--conf: parameter 'depth': '2' is not of type 'integer'",
        ),
        (("plan", "--conf", "{task: x}"), "--conf:1:2: not JSON: expecting property name"),
        (("plan", "--conf", "[1]"), "--conf:1:1: it is a list, not a JSON object"),
        (("do-it", *CONF, "-r", "no.json"), "no.json:1:1: it cannot be read: No such file"),
        (("do-it", *CONF, "-r", "bad.json"), "bad.json:2:1: not JSON: expecting value"),
        (
            ("do-it", *CONF, "-r", "lint.json"),
            "lint.json: 'lint' is no step before 'do-it'; allowed: plan",
        ),
        (
            ("do-it", *CONF, "-r", "empty.json"),
            "dags/w.yaml: step 'do-it': the prompt of step do-it:1: the results of step 'plan' has "
            "no attribute 'output'",
        ),
    ],
)
def test_bad_input_is_said(
    words: tuple[str, ...], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "bad.json").write_text("\n")
    (here / "lint.json").write_text('{"lint": {}}')
    (here / "empty.json").write_text('{"plan": {}}')
    done = run(capsys, "render", "dags/w.yaml", *words)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(said), done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("params.tsk", "the param 'tsk' is not declared; did you mean 'task'?"),
        ("1 // (params.depth - 2)", "ZeroDivisionError"),
    ],
)
def test_an_error_of_a_template_is_located(
    expression: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "prompts" / "plan.md").write_text(f"Plan\n{{{{ {expression} }}}}\n")
    done = run(capsys, "render", "dags/w.yaml", "plan", *CONF)
    assert (done.status, done.out) == (1, "")
    assert "prompts/plan.md:2:" in done.err
    assert said in done.err


def test_a_repository_that_a_run_may_not_name(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = '{"task": "x", "repository": "file:///etc"}'
    (here / "prompts" / "plan.md").write_text("{{ run.base }}")
    done = run(capsys, "render", "dags/w.yaml", "plan", "--conf", conf)
    assert (done.status, done.out) == (1, "")
    assert "file:///etc" in done.err


def test_a_placeholder_is_whatever_a_template_asks_for() -> None:
    value = Placeholder("steps.a.output")
    assert str(value.tasks[0]["x"].title) == "«steps.a.output.tasks[0]['x'].title»"
    assert [str(item) for item in value] == ["«steps.a.output[0]»"]
    assert str(value[:3]) == "«steps.a.output»"
    assert str(value.split("x")) == "«steps.a.output.split(…)»"
    assert len(value) == 1
    assert value
