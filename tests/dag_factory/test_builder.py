"""Definitions as the DAGs that Airflow runs."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jinja2
import pytest
from airflow.sdk import DAG
from airflow.sdk.definitions.param import process_params
from airflow.serialization.serialized_objects import DagSerialization

from airflow_agent_provider.agents.registry import AGENTS, AgentSpec
from airflow_agent_provider.operators.agent import AgentOperator
from airflow_agent_provider.operators.codex import CodexAgentOperator
from airflow_agent_provider.operators.cursor import CursorAgentOperator
from dag_factory.builder import build
from dag_factory.reader import read_definition

REPOSITORY = Path(__file__).parents[2]

SEED = """\
name: feature-implementation
steps:
  - id: plan
    agent: cursor
    prompt: prompts/plan-feature.md
    output: docs/plan.md
  - id: implement
    agent: cursor
    prompt: prompts/implement.md
    depends_on: plan
  - id: test
    agent: cursor
    prompt: prompts/write-tests.md
    depends_on: implement
  - id: review
    agent: codex
    prompt: prompts/code-review.md
    depends_on: test
"""


def dag_of(folder: Path, text: str) -> DAG:
    """Return the DAG of the workflow ``w`` with this definition."""
    (folder / "w.yaml").write_text(text)
    return build(read_definition(folder / "w.yaml"), str(folder / "workflows.py"))


def stored(dag: DAG) -> Any:
    """Return the DAG as the scheduler has it."""
    return DagSerialization.from_dict(DagSerialization.to_dict(dag))


def test_the_seed_is_what_the_design_says_and_becomes_its_dag() -> None:
    path = REPOSITORY / "dags" / "feature-implementation.yaml"
    assert path.read_text() == SEED

    dag = build(read_definition(path), str(path.with_name("workflows.py")))

    assert dag.dag_id == "feature-implementation"
    assert dag.schedule is None
    assert dag.start_date is None
    assert dag.catchup is False
    assert dag.tags == {"agents"}
    assert dag.fileloc == str(path.with_name("workflows.py"))
    kinds = {task.task_id: type(task) for task in dag.tasks}
    assert kinds == {
        "plan": CursorAgentOperator,
        "implement": CursorAgentOperator,
        "test": CursorAgentOperator,
        "review": CodexAgentOperator,
    }
    upstream = {task.task_id: task.upstream_task_ids for task in dag.tasks}
    assert upstream == {"plan": set(), "implement": {"plan"}, "test": {"implement"}} | {
        "review": {"test"}
    }
    for task in dag.tasks:
        assert task.prompt_folders == (str(REPOSITORY / "dags"), str(REPOSITORY))
        assert task.retries == 2
        assert task.retry_delay == timedelta(seconds=30)
        assert task.retry_exponential_backoff == 2
        assert task.max_retry_delay == timedelta(minutes=10)
        assert task.timeout == timedelta(hours=1)
        assert task.stall == timedelta(minutes=10)
        assert task.access == "write"
        assert task.prompt_contract is True
        assert (task.fallbacks, task.verify, task.repair, task.retry_on) == ((), (), 2, None)
        assert (task.changes, task.allow_paths, task.deny_paths) == (None, (), ())
        assert (task.budget_usd, task.budget_tokens, task.network) == (None, None, "model")
        assert (task.setup_commands, task.setup_files) == ((), ())
    assert dag.get_task("plan").output_path == "docs/plan.md"
    assert stored(dag).task_dict.keys() == kinds.keys()


def test_every_key_of_a_step_reaches_its_operator(folder: Path) -> None:
    dag = dag_of(
        folder,
        """\
name: w
description: Does it
tags: [docs]
repository:
  url: https://example.com/r.git
  ref: main
  connection: git_mine
  submodules: true
  sparse: [src/**]
setup: {run: [uv sync, make], files: [uv.lock]}
budget: {usd: 5, tokens: 2000000}
steps:
  - id: a
    agent: {name: codex, model: gpt, connection: codex_mine, options: {effort: high}}
    prompt: prompts/plan.md
    context: {issue: "{{ params.ref }}"}
    access: read_only
    output: {path: out.json, schema: schemas/plan.json}
    changes: forbidden
    paths: {allow: ["src/**", "docs/*"], deny: [".github/**"]}
    verify: [pytest -q, ruff check .]
    repair: 3
    retry: {count: 3, delay: 1m, backoff: constant, on: [Unavailable, Stalled]}
    timeout: 45m
    stall: 1m30s
    network: open
    prompt_contract: false
""",
    )
    task = dag.get_task("a")
    assert isinstance(task, CodexAgentOperator)
    assert dag.description == "Does it"
    assert dag.tags == {"agents", "docs"}
    assert task.model == "gpt"
    assert task.agent_conn_id == "codex_mine"
    assert task.options == {"effort": "high"}
    assert task.prompt == "prompts/plan.md"
    assert task.prompt_context == {"issue": "{{ params.ref }}"}
    assert task.access == "read_only"
    assert task.output_path == "out.json"
    assert task.output_schema == "schemas/plan.json"
    assert task.changes == "forbidden"
    assert task.allow_paths == ("src/**", "docs/*")
    assert task.deny_paths == (".github/**",)
    assert task.verify == ("pytest -q", "ruff check .")
    assert task.repair == 3
    assert task.retry_on == ("Unavailable", "Stalled")
    assert task.network == "open"
    assert (task.budget_usd, task.budget_tokens) == (5, 2_000_000)
    assert (task.setup_commands, task.setup_files) == (("uv sync", "make"), ("uv.lock",))
    assert task.repository_conn_id == "git_mine"
    assert (task.submodules, task.sparse) == (True, ("src/**",))
    assert task.retries == 3
    assert task.timeout == timedelta(minutes=45)
    assert task.stall == timedelta(seconds=90)
    assert task.prompt_contract is False


def test_the_first_of_several_agents_does_the_step_and_the_others_take_over(folder: Path) -> None:
    dag = dag_of(
        folder,
        """\
name: w
defaults: {agent: [cursor, codex]}
steps:
  - {id: a, prompt: go}
  - id: b
    prompt: go
    agent:
      - {name: codex, model: one}
      - cursor
      - {name: codex, connection: mine, model: two, options: {effort: high}}
""",
    )
    a, b = dag.get_task("a"), dag.get_task("b")
    assert isinstance(a, CursorAgentOperator)
    nothing = {"model": None, "agent_conn_id": None, "options": {}}
    assert a.fallbacks == ({"agent": "codex", **nothing},)
    assert isinstance(b, CodexAgentOperator)
    assert (b.agent, b.model, b.agent_conn_id) == ("codex", "one", None)
    assert b.fallbacks == (
        {"agent": "cursor", **nothing},
        {"agent": "codex", "model": "two", "agent_conn_id": "mine", "options": {"effort": "high"}},
    )


def test_one_model_for_several_connections_of_an_agent(folder: Path) -> None:
    agents = "[codex, {name: codex, connection: mine}]"
    step = f"{{id: a, prompt: go, agent: {agents}, model: one}}"
    a = dag_of(folder, f"name: w\nsteps: [{step}]\n").get_task("a")
    assert (a.model, a.fallbacks[0]["model"]) == ("one", "one")


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ("agent: codex", "agent: [codex]"),
        ("agent: {name: codex, model: x}", "agent: [{name: codex, model: x}]"),
        ("agent: codex, verify: make", "agent: codex, verify: [make]"),
        ("agent: codex, paths: {deny: a}", "agent: codex, paths: {deny: [a]}"),
        ("agent: codex, retry: {on: Stalled}", "agent: codex, retry: {on: [Stalled]}"),
    ],
)
def test_one_value_is_a_list_of_one(folder: Path, one: str, several: str) -> None:
    digests = [
        dag_of(folder, f"name: w\nsteps: [{{id: a, prompt: go, {keys}}}]\n")
        .get_task("a")
        .definition_sha256
        for keys in (one, several)
    ]
    assert digests[0] == digests[1]


class MuteOperator(AgentOperator):
    """The operator of an agent that the factory never heard of."""

    default_agent = "mute"


def test_an_agent_of_a_new_row_of_the_registry_just_works(
    folder: Path, mute: AgentSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AGENTS, "mute", replace(mute, operator=f"{__name__}.MuteOperator"))
    step = "{id: a, prompt: go, agent: {name: mute, options: {command: [my-agent, acp]}}}"
    a = dag_of(folder, f"name: w\nsteps: [{step}]\n").get_task("a")
    assert isinstance(a, MuteOperator)
    assert a.options == {"command": ["my-agent", "acp"]}


def retries_of(folder: Path, retry: str, default: str = "") -> dict[str, Any]:
    """Return what Airflow is told of a step's ``retry`` and its workflow's."""
    defaults = f"defaults: {{retry: {default}}}\n" if default else ""
    step = f"{{id: a, agent: codex, prompt: go{', retry: ' + retry if retry else ''}}}"
    task = dag_of(folder, f"name: w\n{defaults}steps: [{step}]\n").get_task("a")
    return {
        "retries": task.retries,
        "delay": task.retry_delay.total_seconds(),
        "backoff": task.retry_exponential_backoff,
        "max": task.max_retry_delay and task.max_retry_delay.total_seconds(),
    }


@pytest.mark.parametrize(
    ("retry", "default", "expected"),
    [
        ("", "", (2, 30, 2, 600)),
        ("5", "", (5, 30, 2, 600)),
        ("0", "", (0, 30, 2, 600)),
        ("{delay: 1m}", "", (2, 60, 2, 600)),
        ("{delay: 1h}", "", (2, 3600, 2, 3600)),
        ("{delay: 10s, max_delay: 20s}", "", (2, 10, 2, 20)),
        ("{backoff: constant}", "", (2, 30, 0, None)),
        ("{backoff: none}", "", (2, 0, 0, None)),
        ("", "7", (7, 30, 2, 600)),
        ("1", "{count: 7, delay: 5s, backoff: constant}", (1, 5, 0, None)),
        ("{delay: 2m}", "{count: 7, delay: 5s, max_delay: 1m}", (7, 120, 2, 120)),
    ],
)
def test_retries(
    folder: Path, retry: str, default: str, expected: tuple[int, int, int, int | None]
) -> None:
    names = ("retries", "delay", "backoff", "max")
    assert retries_of(folder, retry, default) == dict(zip(names, expected, strict=True))


def test_retries_survive_storage(folder: Path) -> None:
    text = "name: w\nsteps: [{id: a, agent: codex, prompt: go, retry: {backoff: none}}]\n"
    assert stored(dag_of(folder, text)).get_task("a").retry_delay == timedelta()


@pytest.mark.parametrize(
    ("retry", "default", "expected"),
    [
        ("{on: [Stalled]}", "", ("Stalled",)),
        ("", "{on: [Stalled]}", ("Stalled",)),
        ("5", "{on: [Stalled]}", ("Stalled",)),
        ("{on: [TimedOut]}", "{on: [Stalled]}", ("TimedOut",)),
        ("{backoff: none}", "", None),
    ],
)
def test_what_is_tried_again(
    folder: Path, retry: str, default: str, expected: tuple[str, ...] | None
) -> None:
    defaults = f"defaults: {{retry: {default}}}\n" if default else ""
    step = f"{{id: a, agent: codex, prompt: go{', retry: ' + retry if retry else ''}}}"
    task = dag_of(folder, f"name: w\n{defaults}steps: [{step}]\n").get_task("a")
    assert task.retry_on == expected


def test_a_step_says_more_than_the_defaults(folder: Path) -> None:
    dag = dag_of(
        folder,
        """\
name: w
defaults:
  agent: {name: codex, model: one}
  timeout: 5m
  stall: 1m
  access: read_only
  prompt_contract: false
  network: open
  repair: 5
steps:
  - {id: a, prompt: go}
  - id: b
    prompt: go
    agent: cursor
    timeout: 6m
    access: write
    prompt_contract: true
    network: model
    repair: 0
  - {id: c, prompt: go, model: two}
""",
    )
    a, b, c = (dag.get_task(step) for step in "abc")
    assert (a.agent, a.model, a.access, a.prompt_contract) == ("codex", "one", "read_only", False)
    assert (b.agent, b.model, b.access, b.prompt_contract) == ("cursor", None, "write", True)
    assert (a.timeout, b.timeout, b.stall) == tuple(timedelta(minutes=n) for n in (5, 6, 1))
    assert c.model == "two"
    assert [(task.network, task.repair) for task in (a, b)] == [("open", 5), ("model", 0)]


def test_every_workflow_takes_repository_and_ref(folder: Path) -> None:
    step = "steps: [{id: a, agent: codex, prompt: go}]\n"
    dag = dag_of(folder, f"name: w\nrepository: {{url: /srv/r.git, ref: dev}}\n{step}")
    assert dag.params["repository"] == "/srv/r.git"
    assert dag.params["ref"] == "dev"
    assert dag.params.get_param("repository").description

    plain = dag_of(folder, f"name: w\n{step}")
    assert (plain.params["repository"], plain.params["ref"]) == ("", "")


@pytest.mark.parametrize(
    ("conf", "repository", "ref"),
    [
        ({}, "/srv/r.git", ""),
        ({"repository": "/srv/other.git", "ref": "v1"}, "/srv/other.git", "v1"),
        # What the trigger's form sends for a field that was emptied.
        ({"repository": None}, "", ""),
    ],
)
def test_the_operator_sees_what_a_run_was_given(
    folder: Path, conf: dict[str, Any], repository: str, ref: str
) -> None:
    dag = dag_of(
        folder,
        "name: w\nrepository: /srv/r.git\nsteps: [{id: a, agent: codex, prompt: go}]\n",
    )
    task = dag.get_task("a")
    params = process_params(dag, task, conf, suppress_exception=False)
    assert task.render_template(task.repository, {"params": params}) == repository
    assert task.render_template(task.ref, {"params": params}) == ref


def test_params_are_json_schemas(folder: Path) -> None:
    dag = dag_of(
        folder,
        """\
name: w
params:
  issue: {type: string, description: Its number}
  level: {enum: [1, 2], default: 2}
steps: [{id: a, agent: codex, prompt: go}]
""",
    )
    issue, level = dag.params.get_param("issue"), dag.params.get_param("level")
    assert (issue.schema, issue.description) == ({"type": "string"}, "Its number")
    assert not issue.has_value
    assert (level.schema, level.value) == ({"enum": [1, 2]}, 2)


@pytest.mark.parametrize(
    ("schedule", "summary", "runs"),
    [
        ("0 6 * * 1-5", "0 6 * * 1-5", 16),
        ("'@daily'", "0 0 * * *", 16),
        ("'@once'", "@once", 16),
        ("'@continuous'", "@continuous", 1),
    ],
)
def test_schedules(folder: Path, schedule: str, summary: str, runs: int) -> None:
    text = f"name: w\nschedule: {schedule}\nsteps: [{{id: a, agent: codex, prompt: go}}]\n"
    dag = dag_of(folder, text)
    dag.validate()
    kept = stored(dag)
    assert kept.timetable.summary == summary
    assert kept.timetable.can_be_scheduled
    assert kept.max_active_runs == runs
    assert kept.start_date is not None
    assert kept.catchup is False


@pytest.mark.parametrize("schedule", ["none", "null", "~"])
def test_no_schedule(folder: Path, schedule: str) -> None:
    text = f"name: w\nschedule: {schedule}\nsteps: [{{id: a, agent: codex, prompt: go}}]\n"
    assert not stored(dag_of(folder, text)).timetable.can_be_scheduled


TWO_STEPS = """\
name: w
steps:
  - {id: a, agent: codex, prompt: prompts/plan.md, output: {schema: schemas/plan.json}}
  - {id: b, agent: codex, prompt: go}
"""


@pytest.mark.parametrize(
    "change",
    [
        ("prompts/plan.md", "Another plan."),
        ("schemas/plan.json", '{"type": "array"}'),
        (
            "dags/w.yaml",
            TWO_STEPS.replace(
                "agent: codex, prompt: prompts", "retry: 3, agent: codex, prompt: prompts"
            ),
        ),
        (
            "dags/w.yaml",
            TWO_STEPS.replace("schemas/plan.json}", "schemas/plan.json, path: a.json}"),
        ),
        (
            "dags/w.yaml",
            TWO_STEPS.replace(
                "{id: a, agent: codex", "{id: a, agent: {name: codex, options: {x: 1}}"
            ),
        ),
    ],
)
def test_a_change_of_a_step_or_its_files_makes_a_new_version_of_it_alone(
    folder: Path, change: tuple[str, str]
) -> None:
    before = dag_of(folder, TWO_STEPS)
    name, content = change
    (folder.parent / name).write_text(content)
    after = dag_of(folder, (folder / "w.yaml").read_text())

    assert before.get_task("a").definition_sha256 != after.get_task("a").definition_sha256
    assert before.get_task("b").definition_sha256 == after.get_task("b").definition_sha256
    assert before.doc_md != after.doc_md
    assert stored(before).get_task("a").definition_sha256 == before.get_task("a").definition_sha256


@pytest.mark.parametrize(
    "key",
    [
        "agent: [codex, cursor]",
        "verify: make",
        "repair: 1",
        "changes: required",
        "paths: {allow: a}",
        "paths: {deny: a}",
        "network: open",
        "retry: {on: Stalled}",
    ],
)
def test_each_key_of_a_step_defines_it(folder: Path, key: str) -> None:
    def digest(keys: str) -> str:
        step = f"{{id: a, prompt: go, {keys}}}"
        dag = dag_of(folder, f"name: w\ndefaults: {{agent: codex}}\nsteps: [{step}]\n")
        return stored(dag).get_task("a").definition_sha256

    assert digest(key) != digest("agent: codex")


@pytest.mark.parametrize(
    "key",
    ["budget: {usd: 1}", "budget: {tokens: 1}", "setup: {run: a}", "setup: {run: a, files: b}"],
)
def test_budget_and_set_up_define_every_step(folder: Path, key: str) -> None:
    before = "setup: {run: a}" if "files" in key else "description: x"
    one, other = (dag_of(folder, f"{TWO_STEPS}{line}\n") for line in (before, key))
    for step in "ab":
        assert one.get_task(step).definition_sha256 != other.get_task(step).definition_sha256


def test_the_same_definition_makes_the_same_dag(folder: Path) -> None:
    first, second = dag_of(folder, TWO_STEPS), dag_of(folder, TWO_STEPS)
    assert DagSerialization.to_dict(first) == DagSerialization.to_dict(second)


def test_the_documentation_shows_the_definition(folder: Path) -> None:
    text = "name: w\ndescription: Why\nsteps:\n  - {id: a, agent: codex, prompt: '```` x'}\n"
    doc = dag_of(folder, text).doc_md
    assert doc is not None
    assert doc.startswith(f"Why\n\n`````yaml\n{text}`````\n\nSHA-256 `")


def test_templates_are_found_by_name_and_undefined_names_are_errors(folder: Path) -> None:
    dag = dag_of(folder, TWO_STEPS)
    dag.resolve_template_files()
    assert dag.get_task("a").prompt == "prompts/plan.md"

    template = dag.get_template_env().get_template("prompts/plan.md")
    assert template.filename == str(folder.parent / "prompts" / "plan.md")
    with pytest.raises(jinja2.UndefinedError):
        template.render(params={})


def test_dots_and_dashes_in_ids(folder: Path) -> None:
    dag = dag_of(
        folder,
        "name: w\ndefaults: {agent: codex}\nsteps:\n  - {id: a.b, prompt: go}\n"
        "  - {id: c-d_e, prompt: go, depends_on: [a.b]}\n",
    )
    assert stored(dag).get_task("c-d_e").upstream_task_ids == {"a.b"}
