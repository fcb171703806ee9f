"""Definitions of any shape are checked, and what passes can be built."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.serialization.serialized_objects import DagSerialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dag_factory.builder import build
from dag_factory.errors import InvalidWorkflow
from dag_factory.reader import Definition, read_definition

DURATIONS = st.sampled_from(["1s", "30s", "45m", "2h", "1d", "1h30m"])
CLASSES = st.sampled_from(["Unavailable", "RateLimited", "Stalled", "VerificationFailed"])
RETRIES = st.integers(0, 100) | st.fixed_dictionaries(
    {},
    optional={
        "count": st.integers(0, 9),
        "delay": DURATIONS,
        "backoff": st.just("constant"),
        "on": CLASSES | st.lists(CLASSES, min_size=1),
    },
)
CODEX = st.fixed_dictionaries(
    {"name": st.just("codex")},
    optional={
        "connection": st.sampled_from(["mine", "ours", "theirs"]),
        "options": st.just({"effort": "high", "n": [1, None]}),
    },
)
# Of one vendor, since one model may be given for all of them.
SEVERAL = st.lists(CODEX, min_size=1, unique_by=lambda agent: agent.get("connection"))
AGENTS = st.sampled_from(["codex", "cursor", ["cursor"]]) | CODEX | SEVERAL
PROMPTS = st.sampled_from(
    ["prompts/plan.md", "s3://bucket/plan.md", "Go on: {{ params.ref }}", "é\n"]
)
OUTPUTS = st.just("docs/a.md") | st.fixed_dictionaries(
    {"path": st.just("docs/a.md")},
    optional={"schema": st.sampled_from(["schemas/plan.json", {"type": "object"}])},
)
NAMES = st.sampled_from(["*", "**", "a?", "*.md", ".github", "é b"])
PATTERNS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
COMMANDS = st.sampled_from(["pytest -q", "test -s a && echo '{{ x }}'", "a\n\nb"])


def one_or_several(values: st.SearchStrategy[str], least: int = 1) -> st.SearchStrategy[Any]:
    """Draw one value, or a list of values."""
    return values | st.lists(values, min_size=least, max_size=3)


PATHS = st.fixed_dictionaries({"allow": one_or_several(PATTERNS)}) | st.fixed_dictionaries(
    {"deny": one_or_several(PATTERNS)}, optional={"allow": one_or_several(PATTERNS)}
)
BUDGETS = st.fixed_dictionaries(
    {"usd": st.integers(1, 10**6) | st.floats(0.01, 1e6)},
    optional={"tokens": st.integers(1, 10**12)},
) | st.fixed_dictionaries({"tokens": st.integers(1, 10**12)})
FILES = st.sampled_from(["uv.lock", "ui/package-lock.json"])
SETUPS = st.fixed_dictionaries(
    {"run": one_or_several(COMMANDS)}, optional={"files": one_or_several(FILES, least=0)}
)
SETTINGS = {
    "model": st.just("fast"),
    "access": st.just("write"),
    "retry": RETRIES,
    "timeout": DURATIONS,
    "stall": DURATIONS,
    "prompt_contract": st.booleans(),
    "network": st.sampled_from(["model", "open"]),
    "repair": st.integers(0, 10),
}
STEP = {
    "context": st.just({"k": ["v", 1]}),
    "output": OUTPUTS,
    "changes": st.sampled_from(["required", "allowed", "forbidden"]),
    "paths": PATHS,
    "verify": one_or_several(COMMANDS, least=0),
}
PARAMS = st.dictionaries(
    st.sampled_from(["a", "b-c", "é"]),
    st.sampled_from(
        [{"type": "string", "default": "x"}, {"enum": [1, 2], "default": 2}, {"default": None}]
    ),
)


@st.composite
def workflows(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a definition without fault."""
    ids = draw(st.lists(st.sampled_from(["a", "b.c", "d-e", "f_1"]), min_size=1, unique=True))
    steps = []
    for number, step_id in enumerate(ids):
        earlier = st.lists(st.sampled_from(ids[:number]), unique=True) if number else st.just([])
        keys = {**STEP, "depends_on": earlier}
        required = {"id": st.just(step_id), "prompt": PROMPTS, "agent": AGENTS}
        steps.append(draw(st.fixed_dictionaries(required, optional={**keys, **SETTINGS})))
    optional = {
        "description": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9),
        "tags": st.lists(st.just("docs")),
        "schedule": st.sampled_from(["@daily", "@continuous", "none", None, "*/5 6 * * 1-5"]),
        "params": PARAMS,
        "repository": st.sampled_from(["/srv/r.git", {"url": "https://h/r", "ref": "main"}]),
        "setup": SETUPS,
        "budget": BUDGETS,
        "defaults": st.fixed_dictionaries({}, optional={**SETTINGS, "agent": AGENTS}),
    }
    head = draw(st.fixed_dictionaries({"name": st.just("w")}, optional=optional))
    return {**head, "steps": steps}


SCALARS = st.integers(-2, 500) | st.booleans() | st.none() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(
    SCALARS
    | st.sampled_from(["a", "codex", "cursor", "read_only", "../x.md", "s3://", "(", "#"])
    | st.sampled_from(["required", "open", "Stalled", "PolicyViolation", "**", "src/[a]", " "]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "$ref", "pattern", "schema"]), inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "on", "allow", "usd", "run"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """Draw a definition of which one value is replaced by any other."""
    # Drawn values are shared between examples.
    workflow = deepcopy(draw(workflows()))
    part: Any = workflow
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = draw(st.sampled_from(keys)) if keys else None
        deeper = key is not None and isinstance(part[key], dict | list) and part[key]
        if not deeper or draw(st.booleans()):
            break
        part = part[key]
    if isinstance(part, dict):
        part[key if key is not None else "x"] = draw(ANYTHING)
    elif key is not None:
        part[key] = draw(ANYTHING)
    return workflow


FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def build_and_store(definition: Definition, folder: Path) -> None:
    """Take a definition the whole way that Airflow takes it."""
    dag = build(definition, str(folder / "workflows.py"))
    dag.validate()
    dag.check_cycle()
    stored = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert list(stored.task_dict) == [step.id for step in definition.workflow.steps]


@given(workflows())
@settings(FUZZ, max_examples=60)
def test_what_is_valid_can_be_built_and_stored(folder: Path, value: dict[str, Any]) -> None:
    (folder / "w.yaml").write_text(yaml.safe_dump(value, allow_unicode=True))
    build_and_store(read_definition(folder / "w.yaml"), folder)


@given(damaged() | ANYTHING)
@settings(FUZZ, max_examples=250)
def test_any_other_is_built_too_or_gives_located_errors(folder: Path, value: Any) -> None:
    text = yaml.safe_dump(value, sort_keys=False)
    (folder / "w.yaml").write_text(text)
    try:
        definition = read_definition(folder / "w.yaml", "w.yaml")
    except InvalidWorkflow as error:
        for problem in error.problems:
            assert 1 <= problem.line <= text.count("\n") + 1
            assert "; " in problem.text
            assert "\n" not in problem.text
    else:
        build_and_store(definition, folder)


def test_prompts_and_schemas_come_from_the_folder_first_then_from_its_parent(folder: Path) -> None:
    (folder / "w.yaml").write_text(
        "name: w\nsteps: [{id: a, agent: codex, prompt: prompts/plan.md}]\n"
    )
    before = read_definition(folder / "w.yaml").files.digest("prompts/plan.md")
    (folder / "prompts").mkdir()
    (folder / "prompts" / "plan.md").write_text("Another plan.")
    after = read_definition(folder / "w.yaml").files.digest("prompts/plan.md")
    assert before
    assert after
    assert before != after


def test_an_error_names_the_file_as_the_user_did(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "w.yaml").write_text("name: v\n")
    monkeypatch.chdir(folder.parent)
    with pytest.raises(InvalidWorkflow) as raised:
        read_definition(Path("dags/w.yaml"))
    assert {problem.file for problem in raised.value.problems} == {"dags/w.yaml"}
