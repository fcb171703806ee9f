"""Results of earlier steps, as templates read them."""

from __future__ import annotations

import json

import pytest
from jinja2.sandbox import SandboxedEnvironment

from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.operators.steps import StepResult, Steps, inline_or_reference
from airflow_agent_provider.prompts.render import PromptError, Renderer


def steps(results: dict, upstream: set[str]) -> Steps:
    class Store:
        def key(self, uri):
            return uri.removeprefix("store://")

        def get(self, key):
            return {"long": b"x" * 5000, "json": b'{"a": [1]}'}[key]

    return Steps(upstream, results.get, lambda step: "skipped", Store())


def render(text: str, **names) -> str:
    environment = SandboxedEnvironment()
    return Renderer(environment, [], names, texts={"p": (text, None)}).prompt("p").text.strip()


def test_small_outputs_are_inline_and_large_ones_a_reference():
    assert inline_or_reference("short", "store://x") == "short"
    assert inline_or_reference("é" * 5000, "store://x") == {"$artifact": "store://x", "json": False}
    large = {"a": "x" * 5000}
    assert inline_or_reference(large, "store://x") == {"$artifact": "store://x", "json": True}


def test_templates_read_text_fields_and_references():
    found = steps(
        {
            "plan": {"output": "the plan", "commit": "c0"},
            "a-b": {"output": {"$artifact": "store://long", "json": False}},
            "c": {"output": {"$artifact": "store://json", "json": True}},
        },
        {"plan", "a-b", "c"},
    )
    text = "{{ steps.plan.output }} {{ steps.plan.commit }} {{ steps['a-b'].output | length }}"
    assert render(text, steps=found) == "the plan c0 5000"
    assert render("{{ steps.c.output.a[0] }}", steps=found) == "1"


def test_another_task_s_xcom_is_its_output():
    assert render("{{ steps.py.output }}", steps=steps({"py": [1, 2]}, {"py"})) == "[1, 2]"


def test_a_step_that_is_not_upstream_is_an_error_with_the_names_there_are():
    with pytest.raises(PromptError, match="no attribute 'pln'; there are: plan, test"):
        render("{{ steps.pln.output }}", steps=steps({}, {"plan", "test"}))
    words = r"p:1: steps \(those before this one\) has no attribute 'pln'; there are: none"
    with pytest.raises(PromptError, match=words):
        render("{{ steps.pln.output }}", steps=steps({}, set()))


def test_a_field_that_is_not_there_is_an_error_with_the_names_there_are():
    found = steps({"plan": {"output": "x", "commit": "c"}}, {"plan"})
    with pytest.raises(PromptError, match="no attribute 'outptu'; there are: commit, output"):
        render("{{ steps.plan.outptu }}", steps=found)


def test_a_skipped_step_is_an_error_that_says_so():
    with pytest.raises(InvalidDefinition, match="'plan', which has no result: it is skipped"):
        render("{{ steps.plan.output }}", steps=steps({}, {"plan"}))


def test_a_result_is_a_mapping():
    result = StepResult("plan", {"output": "x"}, lambda uri: b"")
    assert json.dumps(dict(result)) == '{"output": "x"}'
