"""Prompts: strict, located errors, and nothing rendered twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import BaseLoader, Environment, FileSystemLoader
from jinja2.sandbox import SandboxedEnvironment

from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.prompts.render import PromptError, Renderer


@pytest.fixture
def environment() -> Environment:
    return SandboxedEnvironment(loader=FileSystemLoader([]), cache_size=0)


def renderer(environment: Environment, folder: Path, texts=None, **names) -> Renderer:
    return Renderer(environment, [str(folder)], names, {"dag_run": "a run"}, texts)


def test_a_template_and_its_includes_are_the_sources(environment, tmp_path):
    (tmp_path / "main.md").write_text("Do {{ params.what }}.\n{% include 'style.md' %}\n")
    (tmp_path / "style.md").write_text("In style, {{ dag_run }}.")
    prompt = renderer(environment, tmp_path, params={"what": "it"}).prompt("main.md")
    assert prompt.text == "Do it.\nIn style, a run.\n"
    assert [source.name for source in prompt.sources] == ["main.md", "style.md"]
    assert len(prompt.sha256) == 64


def test_upstream_text_is_data(environment, tmp_path):
    (tmp_path / "main.md").write_text("{{ steps.plan.output }}")
    steps = {"plan": {"output": "{{ params.secret }} {% raw %}"}}
    prompt = renderer(environment, tmp_path, steps=steps, params={"secret": "x"}).prompt("main.md")
    assert prompt.text == "{{ params.secret }} {% raw %}\n"


def test_text_of_the_step_itself_with_its_version(environment, tmp_path):
    texts = {"s3://bucket/p.md": ("Hello {{ params.who }}", "v7")}
    prompt = renderer(environment, tmp_path, texts, params={"who": "you"}).prompt(
        "s3://bucket/p.md"
    )
    assert prompt.text == "Hello you\n"
    assert prompt.sources[0].version == "v7"


@pytest.mark.parametrize(
    ("template", "error"),
    [
        (
            "one\ntwo\n{{ prams.x }}",
            "main.md:3: 'prams' is undefined; there are: params, steps, and Airflow's own names",
        ),
        (
            "{{ params.y }}",
            "main.md:1: 'dict object' has no attribute 'y'; there are: feature, x",
        ),
        ("\n{% if %}", "main.md:2: Expected an expression, got 'end of statement block'"),
        ("\n\n{{ 1 / 0 }}", "main.md:3: ZeroDivisionError: division by zero"),
        ("{% include 'gone.md' %}", "there is no template 'gone.md' in "),
        ("  \n", "main.md: the prompt is empty"),
        ("a\n{{ nope | upper }}", "main.md:2: 'nope' is undefined"),
    ],
)
def test_errors_name_template_line_and_names(environment, tmp_path, template, error):
    (tmp_path / "main.md").write_text(template)
    names = {"params": {"x": 1, "feature": "f"}, "steps": {}}
    with pytest.raises(PromptError) as caught:
        renderer(environment, tmp_path, **names).prompt("main.md")
    assert error in caught.value.reason


def test_an_error_in_an_included_template_names_that_one(environment, tmp_path):
    (tmp_path / "main.md").write_text("a\n\n{% include 'part.md' %}")
    (tmp_path / "part.md").write_text("\n{{ nope }}")
    with pytest.raises(PromptError, match=r"/part\.md:2: 'nope' is undefined"):
        renderer(environment, tmp_path).prompt("main.md")


def test_a_missing_template_names_the_folders(environment, tmp_path):
    with pytest.raises(PromptError) as caught:
        renderer(environment, tmp_path).prompt("gone.md")
    assert caught.value.reason == f"gone.md: there is no template 'gone.md' in {tmp_path}"
    assert isinstance(caught.value, InvalidDefinition)


def test_a_step_s_own_failure_passes_through(environment, tmp_path):
    (tmp_path / "main.md").write_text("{{ file('x') }}")

    def file(path: str) -> str:
        raise InvalidDefinition(f"no {path}")

    with pytest.raises(InvalidDefinition, match="no x"):
        renderer(environment, tmp_path, file=file).prompt("main.md")


def test_values_are_rendered_wherever_they_are_nested(environment, tmp_path):
    render = renderer(environment, tmp_path, params={"n": 3})
    value = {"a": ["{{ params.n }}", 4], "b": {"c": "x{{ params.n }}"}}
    assert render.value(value, "context") == {"a": ["3", 4], "b": {"c": "x3"}}
    with pytest.raises(PromptError, match=r"context\.a\[0\]:1: 'no' is undefined"):
        render.value({"a": ["{{ no }}"]}, "context")


def test_the_given_environment_stays_as_it_was(environment, tmp_path):
    before = (environment.loader, environment.undefined)
    (tmp_path / "main.md").write_text("x")
    renderer(environment, tmp_path).prompt("main.md")
    assert (environment.loader, environment.undefined) == before
    assert isinstance(environment.loader, BaseLoader)


def test_values_are_single_words_of_a_command(environment, tmp_path):
    names = {"params": {"path": "a b; rm -rf *"}, "steps": {"plan": {"output": ["x", "$(id)"]}}}
    made = renderer(environment, tmp_path, **names)
    command = "cat {{ params.path }} {% for f in steps.plan.output %}{{ f }} {% endfor %}| wc -l"
    assert made.command(command, "'run'") == "cat 'a b; rm -rf *' x '$(id)' | wc -l"
    with pytest.raises(PromptError, match=r"'run':1: .*'pth'"):
        made.command("cat {{ params.pth }}", "'run'")


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ n }}", 3),
        (" {{- rows | length > 1 -}} ", True),
        ("{{ rows }}", [1, 2]),
        ("{{ {'a': n} }}", {"a": 3}),
        ("{{ '}' }}", "}"),
    ],
)
def test_an_expression_has_a_value_of_its_own_type(environment, tmp_path, template, value):
    assert renderer(environment, tmp_path, n=3, rows=[1, 2]).expression(template, "x") == value


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ n }} and {{ n }}", "is no expression"),
        ("n", "is no expression"),
        ("{% if n %}{% endif %}", "is no expression"),
        ("{{ n + }}", "x"),
        ("{{ m }}", "'m' is undefined"),
        ("{{ rows.a.b }}", "has no"),
        ("{{ n / 0 }}", "ZeroDivisionError"),
    ],
)
def test_an_expression_that_has_no_value_says_why(environment, tmp_path, template, error):
    with pytest.raises(PromptError, match=error):
        renderer(environment, tmp_path, n=3, rows={"c": 1}).expression(template, "x")


@pytest.mark.parametrize(
    ("value", "truth"),
    [
        (True, True),
        (0, False),
        ([], False),
        (None, False),
        ("true\n", True),
        ("False", False),
        ("", False),
    ],
)
def test_a_condition_is_true_or_false(environment, tmp_path, value, truth):
    assert renderer(environment, tmp_path, v=value).truth("{{ v }}", "x") is truth


def test_a_condition_that_is_another_text_is_an_error(environment, tmp_path):
    with pytest.raises(PromptError, match="neither true nor false"):
        renderer(environment, tmp_path, v="perhaps").truth("{{ v }}", "x")
