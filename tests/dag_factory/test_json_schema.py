"""The schema for editors: that it is the models', and says of definitions what the checks say."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, BeforeValidator, ConfigDict

import dag_factory
from airflow_agent_provider.agents.registry import AGENTS, AgentSpec
from dag_factory.definition import Duration
from dag_factory.errors import InvalidWorkflow
from dag_factory.json_schema import schema_text, workflow_schema
from dag_factory.reader import read_definition
from dag_factory.source import read_source
from tests.dag_factory.test_errors import FILES, GRAPH, KEYS, SCHEDULES, VALUES, Case

REPOSITORY = Path(dag_factory.__file__).parents[1]
KEPT = REPOSITORY / "dag_factory" / "workflow.schema.json"

#: Broken definitions that no JSON Schema tells from others, or none that people could read, by why.
UNSAID = {
    "the file's own name": ["a name that is not the file's"],
    "what other files hold": [
        "a missing prompt",
        "a missing prompt that is near to none",
        "a missing schema",
    ],
    "what parts say of each other": [
        "a duplicate id",
        "unknown dependencies",
        "a step that depends on itself",
        "two circles",
    ],
    "what an agent can do, which its options and the defaults decide with it": [
        "an agent that cannot work read-only",
        "agents of a list that cannot work read-only",
        "an agent of the defaults that cannot work read-only",
        "a budget that an agent says nothing of",
        "an agent that gives no structured answer",
    ],
    "sums and dates": ["a longest delay that is shorter", "a time that never comes"],
}

#: A definition that has every key, in its long form.
WHOLE: dict[str, Any] = {
    "name": "w",
    "description": "Everything.",
    "tags": ["docs"],
    "owner": "team",
    "schedule": "0 6 * * 1-5",
    "start_date": "2026-01-31",
    "timezone": "Europe/Berlin",
    "max_active_runs": 1,
    "params": {"depth": {"type": "integer", "minimum": 1, "default": 2}},
    "repository": {
        "url": "https://example.com/r.git",
        "ref": "main",
        "connection": "git",
        "submodules": True,
        "lfs": True,
        "sparse": ["src/**"],
    },
    "setup": {"run": ["uv sync"], "files": ["uv.lock"]},
    "budget": {"usd": 5, "tokens": 1000},
    "defaults": {
        "agent": "codex",
        "access": "write",
        "retry": 3,
        "timeout": "45m",
        "stall": "5m",
        "prompt_contract": True,
        "network": "model",
        "repair": 1,
        "pool": "agents",
        "priority": 1,
    },
    "steps": [
        {
            "id": "plan",
            "agent": [
                {"name": "claude", "model": "m", "connection": "c", "options": {"a": 1}},
                "codex",
            ],
            "prompt": "prompts/plan.md",
            "context": {"a": 1},
            "access": "read_only",
            "output": {"path": "docs/plan.md", "schema": {"type": "object"}},
        },
        {
            "id": "implement",
            "agent": "copilot",
            "model": "m",
            "prompt": "Do it.",
            "output": "out.txt",
            "changes": "required",
            "paths": {"allow": ["src/**/*.py"], "deny": ".github/**"},
            "verify": "pytest -q",
            "repair": 2,
            "retry": {
                "count": 1,
                "delay": "30s",
                "backoff": "constant",
                "max_delay": "1h30m",
                "on": ["Unavailable"],
            },
            "depends_on": "plan",
            "network": "open",
            "stall": "5m",
            "timeout": "45m",
            "prompt_contract": False,
            "when": "{{ params.depth > 1 }}",
            "trigger_rule": "all_done",
            "pool": "agents",
            "priority": 10,
        },
        {
            "id": "lint",
            "run": "ruff check .",
            "access": "read_only",
            "output": {"schema": "schemas/plan.json"},
            "changes": "forbidden",
            "paths": {"deny": ["docs"]},
            "depends_on": ["plan", "implement"],
            "network": "model",
            "retry": 0,
            "timeout": "1d",
            "when": " {{ 1\n}} ",
            "trigger_rule": "none_failed",
            "pool": "commands",
            "priority": -1,
        },
        {
            "id": "go",
            "approve": {
                "subject": "Go on?",
                "body": "See {{ steps.lint.output }}.",
                "options": ["Now", "Later"],
                "timeout": "2d",
                "assignees": "ada",
                "on_reject": "continue",
            },
            "depends_on": "lint",
        },
        {"id": "sure", "approve": "Sure?", "depends_on": "go"},
    ],
}
#: Of a dialect whose own schema says other things than the newest one's.
OLD_SCHEMA = {
    "$schema": "http://json-schema.org/draft-04/schema#",
    "minimum": 1,
    "exclusiveMinimum": True,
}
#: What stands anywhere in a mutated definition.
ODD: list[Any] = [
    *(None, True, 0, 1, -1, 11, 101, 0.5, "", " ", "a", "none", {}, [], [""], ["a", "a"]),
    *("write", "read_only", "required", "forbidden", "exponential", "open", "acp", "codx"),
    *("0s", "10s", "366d", "90000h", "1h30", "@daily", "@dayly", "61 * * * *", "0 0 * * mon-fri"),
    *("../a.md", "/etc/x.txt", "docs/x.markdown", "s3://b", "s3://b/k.md", "a b/c", "a/b"),
    *(".git/x", ".GIT", "a//b", "a\\b", "**/x", "a**", "!a", "a[b]", "*.py", "..", "..\n", "a\n"),
    *("https://u:p@example.com/r.git", "git@example.com:r.git", "Unavailable", "PolicyViolation"),
    *({"name": "codex"}, {"name": "codex", "model": "m"}, ["codex", "codex"], ["codex", "cursor"]),
    *({"count": 2}, {"backoff": "none", "delay": "1s"}, {"path": "a"}, {"schema": {}}, {"usd": 0}),
    *({"type": "strng"}, {"type": "string"}, {"minimum": "1"}, OLD_SCHEMA),
    *("{{ a }}", "{{ a }} b", "2026-02-30", "2026-2-3", "Europe/Berln", 2**31, "all_dne"),
    *({"url": "x"}, {"run": "make"}, {"run": []}, {"agent": "codex"}, {"access": "read_only"}),
]


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return checking(workflow_schema())


def checking(schema: dict[str, Any]) -> Draft202012Validator:
    """Return a validator that also knows formats, as a regular expression's."""
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def test_the_kept_schema_is_the_models() -> None:
    assert KEPT.read_text() == schema_text(), "the language has changed; run: make schema"


def test_it_is_a_schema_in_one_piece() -> None:
    schema = workflow_schema()
    Draft202012Validator.check_schema(schema)
    references = {node["$ref"] for node in nodes(schema) if "$ref" in node}
    assert references == {f"#/$defs/{name}" for name in schema["$defs"]}


def test_every_mapping_is_closed_and_every_key_described() -> None:
    schema = workflow_schema()
    named = {name: part for name, part in schema["$defs"].items() if name != "JsonSchema"}
    mappings = [schema, *(part for part in named.values() if part.get("type") == "object")]
    assert len(mappings) > 8
    for mapping in mappings:
        assert mapping["additionalProperties"] is False
        assert mapping["description"]
        for key, said in mapping["properties"].items():
            description = said["description"]
            assert description, key
            assert not description[0].islower(), key
            assert "None" not in description, f"{key}: a reader of YAML knows no None"


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yield all mappings of a schema."""
    if isinstance(node, dict):
        yield node
    for _, item in children(node):
        yield from nodes(item)


def children(value: Any) -> list[tuple[str | int, Any]]:
    """Return what a mapping or a list holds, with keys or indexes; nothing of other values."""
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


@pytest.mark.usefixtures("mute")
@pytest.mark.parametrize(
    "case",
    [*KEYS, *VALUES, *SCHEDULES, *GRAPH, *FILES],
    ids=lambda case: case.name.replace(" ", "-"),
)
def test_it_refuses_each_broken_definition_that_it_has_words_for(case: Case) -> None:
    text = case.text if isinstance(case.text, bytes) else case.text.encode()
    value = read_source(text, "w.yaml", json=False).value
    refused = not checking(workflow_schema()).is_valid(value)
    why = next((why for why, names in UNSAID.items() if case.name in names), None)
    if why is None:
        assert refused, "say it in dag_factory/json_schema_rules.py, or here why it cannot be said"
    else:
        assert not refused, f"the schema does know {why}"


def test_what_cannot_be_said_is_in_the_corpus() -> None:
    known = {case.name for case in [*KEYS, *VALUES, *SCHEDULES, *GRAPH, *FILES]}
    assert {name for names in UNSAID.values() for name in names} <= known


def test_agents_that_an_installation_adds_are_known(mute: AgentSpec) -> None:
    assert workflow_schema()["$defs"]["AgentName"]["enum"] == sorted(AGENTS)
    assert mute.name in AGENTS


class _Say(BaseModel):
    """Says something.

    :param id: its name.
    :param say: the words.
    """

    model_config = ConfigDict(extra="forbid")
    id: str
    say: str


class _Wait(BaseModel):
    """Waits.

    :param id: its name.
    :param wait: how long.
    """

    model_config = ConfigDict(extra="forbid")
    id: str
    wait: Duration


class _Steps(BaseModel):
    """Steps of two kinds.

    :param steps: the steps.
    """

    steps: list[_Say | _Wait]


@pytest.mark.parametrize(
    ("step", "wrong"),
    [
        ({"id": "a", "say": "x"}, []),
        ({"id": "a", "wait": "5m"}, []),
        ({"id": "a"}, ["'say' is a required property"]),
        ({"wait": "5m"}, ["'id' is a required property"]),
        ({"id": "a", "wait": "soon"}, ["'soon' does not match '^"]),
        ({"id": "a", "wait": "5m", "say": "x"}, ["'say' was unexpected"]),
    ],
)
def test_a_step_is_held_against_the_kind_that_its_key_says(
    step: dict[str, Any], wrong: list[str]
) -> None:
    """Not against a choice of all kinds, of which an editor can only say that none fits."""
    errors = [
        error.message for error in checking(workflow_schema(_Steps)).iter_errors({"steps": [step]})
    ]
    assert len(errors) == len(wrong)
    for error, words in zip(errors, wrong, strict=True):
        assert words in error


def test_what_the_generator_has_no_words_for_fails_it() -> None:
    def odd(value: Any) -> Any:
        return value

    class Undescribed(BaseModel):
        """Says nothing of its key."""

        name: str

    class Odd(BaseModel):
        """Has a validator of its own.

        :param name: a name.
        """

        name: Annotated[str, BeforeValidator(odd)]

    with pytest.raises(TypeError, match=r"Undescribed\.name is not described"):
        workflow_schema(Undescribed)
    with pytest.raises(TypeError, match="odd has no rule"):
        workflow_schema(Odd)


def workflows() -> list[Path]:
    """Return the workflows of this repository."""
    found = [REPOSITORY / "dags", REPOSITORY / "examples", REPOSITORY / "tests" / "e2e" / "dags"]
    return sorted(path for folder in found for path in folder.rglob("*.yaml"))


@pytest.mark.parametrize("path", workflows(), ids=lambda path: path.stem)
def test_it_accepts_each_workflow_of_this_repository(
    path: Path, validator: Draft202012Validator
) -> None:
    value = read_source(path.read_bytes(), path.name, json=False).value
    assert [error.message for error in validator.iter_errors(value)] == []


def test_it_accepts_every_key(validator: Draft202012Validator, folder: Path) -> None:
    given = {key for way in paths(WHOLE) for key in way}
    known = {key for said in nodes(workflow_schema()) for key in own_keys(said)}
    assert known <= given, "the language has new keys; put them into WHOLE"
    (folder / "w.json").write_text(json.dumps(WHOLE))
    read_definition(folder / "w.json")
    assert [error.message for error in validator.iter_errors(WHOLE)] == []


def own_keys(said: dict[str, Any]) -> list[str]:
    """Return the keys of a mapping of the language; none of any other part of the schema."""
    return list(said["properties"]) if said.get("additionalProperties") is False else []


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the way to every value within ``value``."""
    if path:
        yield path
    for key, item in children(value):
        yield from paths(item, (*path, key))


def mutated(way: tuple[str | int, ...], odd: Any, how: str) -> dict[str, Any]:
    """Return the whole definition with the value at ``way`` replaced, taken away or added to."""
    definition = copy.deepcopy(WHOLE)
    owner: Any = definition
    for part in way[:-1]:
        owner = owner[part]
    if how == "remove":
        del owner[way[-1]]
    elif how == "replace" or not isinstance(owner, dict):
        owner[way[-1]] = odd
    else:
        owner[f"{way[-1]}s"] = odd
    return definition


MUTATIONS = st.builds(
    mutated,
    st.sampled_from(list(paths(WHOLE))),
    st.sampled_from(ODD),
    st.sampled_from(["replace", "replace", "replace", "remove", "add"]),
)
#: What the checks say that the schema has no words for, as parts of their sentences.
SAID_ALONE = (
    "unknown step",
    "depends on itself",
    "wait for each other",
    "duplicate id",
    "there is no file",
    "the file is",
    "does not fit the schema",
    "shorter than",
    "is out of range",
    "cannot work read-only",
    "gives no structured answer",
    "one 'model' for different agents",
    "no cron expression: ",
    "with the same connection",
    "is no prompt file",
    "unknown time zone",
)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(definition=MUTATIONS)
def test_of_mutations_it_says_what_the_checks_say(
    definition: dict[str, Any], validator: Draft202012Validator, folder: Path
) -> None:
    (folder / "w.json").write_text(json.dumps(definition))
    try:
        # What templates name is beyond any schema.
        read_definition(folder / "w.json", references=False)
    except InvalidWorkflow as error:
        said = [problem.text for problem in error.problems]
        if any(not any(words in text for words in SAID_ALONE) for text in said):
            assert not validator.is_valid(definition), said
    else:
        assert [error.message for error in validator.iter_errors(definition)] == []
