"""What templates name that there will not be: each kind, exactly what is said, and where."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dag_factory.errors import InvalidWorkflow
from dag_factory.files import Files
from dag_factory.known_names import KnownNames
from dag_factory.parts import steps_of
from dag_factory.reader import read_definition
from dag_factory.references import check_template

TASKS = {
    "type": "object",
    "properties": {
        "tasks": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"title": {"type": "string"}, "owner": {"$ref": "#/$defs/owner"}},
                "additionalProperties": False,
            },
        },
        "open": {"type": "object", "properties": {"a": {}}},
        "count": {"type": "integer"},
    },
    "additionalProperties": False,
    "$defs": {"owner": {"properties": {"name": {}}, "additionalProperties": False}},
}
WORKFLOW = """\
name: w
params: {issue: {type: string}, depth: {}}
steps:
  - {id: plan, agent: codex, prompt: go, output: {path: p.json, schema: schemas/tasks.json}}
  - {id: some-notes, agent: codex, prompt: go, depends_on: plan}
  - id: here
    agent: codex
    prompt: prompts/here.md
    depends_on: some-notes
    context: {tone: dry, rules: {first: no haste}, list: [a]}
  - {id: later, agent: codex, prompt: go, depends_on: here}
  - {id: side, agent: codex, prompt: go}
"""


@pytest.fixture
def workflow(folder: Path) -> Path:
    """Return the file of a workflow whose step ``here`` has a prompt file."""
    (folder.parent / "schemas" / "tasks.json").write_text(json.dumps(TASKS))
    path = folder / "w.yaml"
    path.write_text(WORKFLOW)
    return path


def problems(path: Path) -> list[str]:
    """Return what is said of a definition."""
    try:
        read_definition(path, path.name)
    except InvalidWorkflow as error:
        return [str(problem) for problem in error.problems]
    return []


def write(workflow: Path, **templates: str) -> None:
    """Write templates, by their stems."""
    for name, text in templates.items():
        path = workflow.parent.parent / "prompts" / f"{name}.md"
        path.write_bytes(text.encode(errors="surrogatepass"))


class Case(NamedTuple):
    """A template, and what is said of it, each after the file's name."""

    template: str
    said: list[str]


WRONG = {
    "a step that is not upstream": Case(
        "Read\n  {{ steps.side.output }}",
        ["2:12: step 'side' is not upstream of 'here'; add it to 'depends_on'"],
    ),
    "a step in brackets": Case(
        "{{ steps[ 'some-note' ].output }}",
        ["1:11: unknown step 'some-note'; did you mean 'some-notes'?"],
    ),
    "an unknown step near to none": Case(
        "{{ steps.zzz }}", ["1:10: unknown step 'zzz'; allowed: plan, some-notes"]
    ),
    "an unknown step near to one that is not upstream": Case(
        "{{ steps.sid }}", ["1:10: unknown step 'sid'; did you mean 'side'?"]
    ),
    "the step itself": Case(
        "{{ steps.here }}",
        ["1:10: step 'here' reads its own result, which it has not yet; remove this"],
    ),
    "a step that comes after": Case(
        "{{ steps.later }}",
        ["1:10: step 'later' comes after 'here', so it has no result yet; remove this"],
    ),
    "a key of a result": Case(
        "{{ steps.plan.ouput }}",
        ["1:15: the result of step 'plan' has no 'ouput'; did you mean 'output'?"],
    ),
    "a field of an output": Case(
        "{{ steps.plan.output.tsks }}",
        ["1:22: the output of step 'plan' has no 'tsks'; did you mean 'tasks'?"],
    ),
    "a field of an item": Case(
        "{% for task in steps.plan.output.tasks %}\n{{ task.titel }}{% endfor %}",
        [
            "2:9: an item of 'tasks' of the output of step 'plan' has no 'titel'; "
            "did you mean 'title'?"
        ],
    ),
    "a field of a variable, by a reference of the schema": Case(
        "{% set first = steps.plan.output.tasks[0] -%}\n\n  {{ first.owner['nam'] }}",
        [
            "3:18: 'owner' of an item of 'tasks' of the output of step 'plan' has no 'nam'; "
            "did you mean 'name'?"
        ],
    ),
    "a field of a value that has none": Case(
        "{% with n = steps.plan.output.count %}{{ n.value }}{% endwith %}",
        [
            "1:44: by its schema, 'count' of the output of step 'plan' is of type integer, "
            "which has no 'value'; change either"
        ],
    ),
    "a field of plain text": Case(
        "{{ steps['some-notes'].output.tasks }}",
        [
            "1:31: the output of step 'some-notes' is plain text, which has no 'tasks'; "
            "give that step an 'output' with a 'schema', or remove this"
        ],
    ),
    "a param": Case(
        "{{ params.isue }} {{ params['isue'] }}",
        [
            "1:11: the param 'isue' is not declared; did you mean 'issue'?",
            "1:29: the param 'isue' is not declared; did you mean 'issue'?",
        ],
    ),
    "a param near to none": Case(
        "{{ params.zzz }}",
        [
            "1:11: the param 'zzz' is not declared; "
            "declare it under 'params', beside depth, issue, ref, repository"
        ],
    ),
    "a field of a param": Case(
        "{{ params.issue.number }}",
        [
            "1:17: by its schema, the param 'issue' is of type string, which has no 'number'; "
            "change either"
        ],
    ),
    "a key of the run and of the workflow": Case(
        "{{ run.idd }}{{ workflow.nme }}",
        [
            "1:8: 'run' has no 'idd'; did you mean 'id'?",
            "1:26: 'workflow' has no 'nme'; did you mean 'name'?",
        ],
    ),
    "a key of the context": Case(
        "{{ context.ton }}\n{{ context.rules.frist }}\n{{ context.tone.x }}",
        [
            "1:12: 'context' has no 'ton'; did you mean 'tone'?",
            "2:18: 'rules' of 'context' has no 'frist'; did you mean 'first'?",
            "3:17: 'tone' of 'context' is plain text, which has no 'x'; "
            "a template makes text of whatever goes in",
        ],
    ),
    "an unknown name": Case(
        "{{ stpes.plan }} {{ issue }} {{ plan }} {{ zzz }}",
        [
            "1:4: unknown name 'stpes'; did you mean 'steps'?",
            "1:21: unknown name 'issue'; did you mean 'params.issue'?",
            "1:33: unknown name 'plan'; did you mean 'steps.plan'?",
            "1:44: unknown name 'zzz'; there are context, file, params, run, steps, workflow, "
            "and Airflow's names",
        ],
    ),
    "what is asked for of what there is not": Case(
        "{{ steps.zzz.output is defined }}{{ steps.plan.ouput.x | default('') }}",
        [
            "1:10: unknown step 'zzz'; allowed: plan, some-notes",
            "1:48: the result of step 'plan' has no 'ouput'; did you mean 'output'?",
        ],
    ),
    "a macro that is used": Case(
        "{% macro f(a) %}{{ a }}{{ params.isue }}{% endmacro %}{{ f(1) }}",
        ["1:34: the param 'isue' is not declared; did you mean 'issue'?"],
    ),
    "line ends of Windows": Case(
        "\r\n\r\n{{ params.isue }}",
        ["3:11: the param 'isue' is not declared; did you mean 'issue'?"],
    ),
    "nested expressions": Case(
        "{{ [1, params.isue if params.depth > {'a': run.idd}.a else 2] | first }}",
        [
            "1:15: the param 'isue' is not declared; did you mean 'issue'?",
            "1:48: 'run' has no 'idd'; did you mean 'id'?",
        ],
    ),
}
# Wrong for every step that has the file.
WRONG_FOR_ALL = {
    "a filter": Case("{{ 1 | uper }}", ["1:8: unknown filter 'uper'; did you mean 'upper'?"]),
    "a test": Case("{{ 1 is  not evn }}", ["1:14: unknown test 'evn'; did you mean 'even'?"]),
    "a tag": Case("a\n {% fore x in y %}", ["2:5: unknown tag 'fore'; did you mean 'for'?"]),
    "a tag in the wrong place": Case(
        "{% for x in [] %}\n{% endif %}",
        ["2:4: unknown tag 'endif'; 'endfor' or 'else' has to come first"],
    ),
    "a tag that closes nothing": Case(
        "{% endif %}", ["1:4: unknown tag 'endif'; nothing is open here that it could close"]
    ),
    "an expression": Case(
        "{{ a + }}",
        [
            "1:8: not a Jinja template: unexpected 'end of print statement'; "
            "mend it, or put text that is no template between {% raw %} and {% endraw %}"
        ],
    ),
    "a character": Case(
        "Go\n{{ a ? b }}",
        [
            "2:6: not a Jinja template: unexpected char '?'; "
            "mend it, or put text that is no template between {% raw %} and {% endraw %}"
        ],
    ),
    "a bracket": Case(
        "{{ (a] }}",
        [
            "1:6: not a Jinja template: unexpected ']', expected ')'; "
            "mend it, or put text that is no template between {% raw %} and {% endraw %}"
        ],
    ),
    "a number of many digits": Case(
        "{{ " + "9" * 5000 + " }}",
        [
            "1:1: not a Jinja template: Exceeds the limit (4300 digits) for integer string "
            "conversion: value has 5000 digits; use sys.set_int_max_str_digits() to increase the "
            "limit; mend it"
        ],
    ),
    "brackets in brackets": Case(
        "{{ " + "(" * 5000 + " }}", ["1:1: the template is nested too deeply; make it flatter"]
    ),
    "a block twice": Case(
        "{% block a %}{% endblock %}\n{% block a %}{% endblock %}",
        ["2:4: the block 'a' is defined twice; rename one"],
    ),
    "a template that there is not": Case(
        "{% include 'prompts/her.md' %}",
        ["1:12: there is no file 'prompts/her.md'; did you mean 'prompts/here.md'?"],
    ),
}


@pytest.mark.parametrize("name", [*WRONG, *WRONG_FOR_ALL])
def test_what_is_wrong_in_a_prompt_file(name: str, workflow: Path) -> None:
    case = WRONG.get(name) or WRONG_FOR_ALL[name]
    write(workflow, here=case.template)
    whose = "for 'here' of w.yaml: " if name in WRONG else ""
    lines = (line.split(": ", 1) for line in case.said)
    expected = [f"../prompts/here.md:{place}: {whose}{text}" for place, text in lines]
    assert problems(workflow) == expected


RIGHT = {
    "what is always there": "{{ params.repository }}{{ params.ref }}{{ run.id }}{{ run.base }}"
    "{{ run.start }}{{ run.branch }}{{ workflow.name }}{{ workflow.step }}{{ file('a') }}",
    "all that a result has": "{% set r = steps.plan %}{{ r.status }}{{ r.commit }}{{ r.cost }}"
    "{{ r.usage.input }}{{ r.artifacts['prompt.md'] }}{{ r['session'] }}{{ r.items() }}",
    "Airflow's own names": "{{ ds }}{{ dag_run.conf.x }}{{ var.value.y }}{{ ti.z }}{{ macros.m }}",
    "Jinja's own names": "{% for i in range(3) %}{{ loop.index }}{% endfor %}{{ dict(a=1).a }}"
    "{% set n = namespace(x=1) %}{% set n.x = 2 %}{{ n.x }}{{ n.y }}",
    "Airflow's extensions and filters": "{% do [].append(1) %}{{ logical_date | ds_nodash }}",
    "methods": "{{ params.items() }}{{ params.get('x') }}{{ params.issue.upper() }}"
    "{{ steps['some-notes'].output.splitlines()[0] }}{{ steps.plan.output.tasks.count(1) }}",
    "what a schema leaves open": "{{ steps.plan.output.open.b.c }}{{ params.depth.x }}",
    "keys that are computed": "{{ steps[params.issue].zzz }}{{ params[run.id] }}"
    "{{ steps.plan.output[1 + 1].x }}{{ steps.plan.output.tasks[0:1].x }}",
    "what is guarded": "{% if params.x is defined and params.x %}{{ params.x.y }}{% endif %}"
    "{{ steps.side.output if steps.side is defined else '' }}{{ 'z' in params and params.z }}",
    "what has a default": "{{ params.x | default('') }}{{ zzz | d(1) }}"
    "{{ steps.plan.output.tsks | default([], true) }}",
    "names that it sets": "{% set a = 1 %}{% set b, c = 1, 2 %}{% set d %}text{% endset %}"
    "{{ a }}{{ b }}{{ c }}{{ d.e }}{% for e, f in {}.items() %}{{ e }}{{ f }}{% else %}{% endfor %}"
    "{% with g = 1 %}{{ g.h }}{% endwith %}{% macro m(x, y=1) %}{{ x }}{{ y }}{{ varargs }}"
    "{{ kwargs }}{{ caller() }}{% endmacro %}{% call(z) m(1) %}{{ z }}{% endcall %}",
    "a name that it sets anew": "{% set run = {'x': 1} %}{{ run.x }}"
    "{% for params in [] %}{{ params.zzz }}{% endfor %}",
    "a variable of several values": "{% set t = steps.plan.output %}"
    "{% if run.id %}{% set t = {'x': 1} %}{% endif %}{{ t.x }}",
    "a macro that is not used": "{% macro f() %}{{ params.zzz }}{% endmacro %}",
    "a branch for other workflows": "{% if workflow.step == 'side' %}{{ steps.zzz }}{% else %}"
    "{{ params.zzz }}{% endif %}{{ steps.zzz if workflow.name == 'v' else '' }}",
    "raw text and comments": "{% raw %}{{ zzz + }}{% endraw %}{# {{ zzz }} #}",
    "templates whose name is computed": "{% include params.issue ~ '.md' %}"
    "{% include ['zzz.md', params.issue] %}{% import params.issue as m %}{{ m.f(1) }}",
    "templates that need not be": "{% include 'zzz.md' ignore missing %}",
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_may_be_right_is_no_error(name: str, workflow: Path) -> None:
    write(workflow, here=RIGHT[name])
    assert problems(workflow) == []


def test_other_kinds_of_steps(folder: Path) -> None:
    path = folder / "w.yaml"
    path.write_text(
        """\
name: w
steps:
  - {id: test, run: "pytest {{ parms.x }} {{ steps.go }}"}
  - id: go
    depends_on: test
    when: "{{ steps.test.output.ok and run.base }}"
    approve:
      subject: Go on with {{ file('a') }}?
      body: "{{ steps.test.patch }} {{ steps.test.pach }}"
  - {id: and, approve: "{{ steps.go.output.aproved }}", depends_on: go}
  - {id: end, run: "{{ steps.go.commit }} {{ steps.go.output.by }}", depends_on: go}
"""
    )
    assert problems(path) == [
        "w.yaml:3:32: unknown name 'parms'; did you mean 'params'?",
        "w.yaml:3:52: step 'go' comes after 'test', so it has no result yet; remove this",
        "w.yaml:6:33: the output of step 'test' is plain text, which has no 'ok'; "
        "give that step an 'output' with a 'schema', or remove this",
        "w.yaml:6:44: 'run' has no 'base'; allowed: branch, id",
        "w.yaml:8:30: 'file' is not known here; there are params, run, steps, workflow, "
        "and Airflow's names",
        "w.yaml:9:51: the result of step 'test' has no 'pach'; did you mean 'patch'?",
        "w.yaml:10:44: the output of step 'go' has no 'aproved'; did you mean 'approved'?",
        "w.yaml:11:33: the result of step 'go' has no 'commit'; "
        "allowed: agent, artifacts, attempt, output, status",
    ]


def test_other_templates_are_followed(workflow: Path) -> None:
    write(
        workflow,
        here="{% extends 'prompts/base.md' %}{{ zzz }}{% import 'prompts/lib.md' as lib %}"
        "{% from 'prompts/lib.md' import g with context %}"
        "{% block middle %}{{ super() }}{{ lib.f() }}{% endblock %}",
        base="{% set mine = 1 %}{{ params.base }}{% block first %}{{ params.first }}{% endblock %}"
        "{% block middle %}{{ params.middle }}{% endblock %}"
        "{% for task in steps.plan.output.tasks %}{% include 'prompts/part.md' %}{% endfor %}",
        lib="{% macro f() %}{{ params.f }}{% endmacro %}{% macro g() %}{{ run.g }}{% endmacro %}"
        "{% macro h() %}{{ zzz }}{% endmacro %}",
        part="{{ task.anything }}{{ mine }}{{ steps.part }}{% include 'prompts/part.md' %}",
    )
    assert [line.replace("for 'here' of w.yaml: ", "") for line in problems(workflow)] == [
        "../prompts/base.md:1:29: the param 'base' is not declared; "
        "declare it under 'params', beside depth, issue, ref, repository",
        "../prompts/base.md:1:63: the param 'first' is not declared; "
        "declare it under 'params', beside depth, issue, ref, repository",
        "../prompts/base.md:1:113: the param 'middle' is not declared; "
        "declare it under 'params', beside depth, issue, ref, repository",
        "../prompts/lib.md:1:19: an imported template does not know 'params'; "
        "import it 'with context'",
        "../prompts/lib.md:1:66: 'run' has no 'g'; allowed: base, branch, id, start",
        "../prompts/part.md:1:39: unknown step 'part'; allowed: plan, some-notes",
    ]


def test_a_block_that_is_overridden_is_not_rendered(workflow: Path) -> None:
    write(
        workflow,
        here="{% extends 'prompts/base.md' %}{% block a %}mine{% endblock %}",
        base="{% block a %}{{ params.zzz }}{% endblock %}",
    )
    assert problems(workflow) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "prompt: Do {{ params.isue }}",
            ["7:26: the param 'isue' is not declared; did you mean 'issue'?"],
        ),
        (
            "prompt: |2-  # as it is\n\n        Do\n         {{ run.idd }}\n         {{ 1 + }}",
            [
                "11:17: not a Jinja template: unexpected 'end of print statement'; "
                "mend it, or put text that is no template between {% raw %} and {% endraw %}"
            ],
        ),
        (
            "prompt: >\n      Do\n      what\n\n        {{ run.idd\n      }}",
            ["11:16: 'run' has no 'idd'; did you mean 'id'?"],
        ),
        (
            "prompt: Do\n      what {{ run\n      .idd }}",
            ["9:8: 'run' has no 'idd'; did you mean 'id'?"],
        ),
        (
            r'prompt: "\"\U0001F600\u00e9\t\x41\' {{ run[\"idd\"] }}"'.replace(r"\'", "'"),
            ["7:47: 'run' has no 'idd'; did you mean 'id'?"],
        ),
        (
            "prompt: 'It''s {{ run[''idd''] }}'",
            ["7:27: 'run' has no 'idd'; did you mean 'id'?"],
        ),
        (
            'prompt: "Do \\\n      {{ run.idd }}"',
            ["8:14: 'run' has no 'idd'; did you mean 'id'?"],
        ),
        (
            "prompt: &p !!bad\n      'Do {{ run.idd }}'",
            [
                "7:13: the tag '!!bad' is not supported; write the plain value",
                "8:18: 'run' has no 'idd'; did you mean 'id'?",
            ],
        ),
        (
            "prompt: go\n    context: {a: ['x', {b: '{{ run.idd }}'}], c: '{{ context.a }}'}",
            [
                "8:36: 'run' has no 'idd'; did you mean 'id'?",
                "8:54: 'context' is not known here; there are file, params, run, steps, workflow, "
                "and Airflow's names",
            ],
        ),
    ],
)
def test_what_is_wrong_in_the_definition_itself(line: str, said: list[str], folder: Path) -> None:
    path = folder / "w.yaml"
    head = (
        "name: w\nparams: {issue: {type: string}}\nsteps:\n  - {id: b, agent: codex, prompt: go}\n"
    )
    path.write_text(head + "  - id: a\n    agent: codex\n    " + line + "\n")
    assert problems(path) == [f"w.yaml:{each}" for each in said]


def test_json_is_located_too(folder: Path) -> None:
    path = folder / "w.json"
    prompt = '"\\ud83d\\ude00\\n{{ run.idd }} {{ run[\\"ide\\"] }}"'
    path.write_text(
        '{"name": "w",\n "steps": [{"id": "a", "agent": "codex",\n  "prompt": ' + prompt + "}]}"
    )
    assert problems(path) == [
        "w.json:3:35: 'run' has no 'idd'; did you mean 'id'?",
        "w.json:3:49: 'run' has no 'ide'; did you mean 'id'?",
    ]


def test_an_alias_is_located_where_it_stands(folder: Path) -> None:
    path = folder / "w.yaml"
    path.write_text(
        "name: w\ndescription: &d 'Do {{ run.idd }}'\n"
        "steps:\n  - {id: a, agent: codex, prompt: *d}\n"
    )
    assert problems(path) == ["w.yaml:4:35: 'run' has no 'idd'; did you mean 'id'?"]


def test_steps_that_share_a_file_share_its_errors(workflow: Path) -> None:
    ids = "abcde"
    steps = "".join(f"  - {{id: {step}, agent: codex, prompt: prompts/here.md}}\n" for step in ids)
    workflow.write_text(f"name: w\nsteps:\n{steps}")
    write(workflow, here="{{ params.x }} {{ steps.a.output }} {{ 1 | uper }}")
    said = problems(workflow)
    assert said[0].startswith(
        "../prompts/here.md:1:11: for 'a', 'b', 'c' and 2 more of w.yaml: the param 'x' is not"
    )
    assert [line.partition(" of w.yaml")[0] for line in said[1:-1]] == [
        "../prompts/here.md:1:25: for 'a'",
        *(f"../prompts/here.md:1:25: for '{step}'" for step in ids[1:]),
    ]
    assert said[-1] == "../prompts/here.md:1:44: unknown filter 'uper'; did you mean 'upper'?"


def test_the_file_is_named_from_where_the_definition_is(workflow: Path) -> None:
    write(workflow, here="{{ 1 + }}")
    (workflow.parent / "prompts").mkdir()
    for named in (str(workflow), f"x/{workflow.name}", workflow.name):
        with pytest.raises(InvalidWorkflow) as caught:
            read_definition(workflow, named)
        expected = Path(named).parent / ".." / "prompts" / "here.md"
        assert caught.value.problems[0].file == os.path.normpath(expected)
    # The definition's own folder comes first.
    (workflow.parent / "prompts" / "here.md").write_text("{{ 1 + }}")
    assert problems(workflow)[0].startswith("prompts/here.md:1:8: ")


def test_a_dependency_that_is_wrong_is_no_second_error(folder: Path) -> None:
    path = folder / "w.yaml"
    path.write_text(
        "name: w\ndefaults: {agent: codex}\nsteps:\n  - {id: plan, prompt: go}\n"
        "  - {id: a, prompt: '{{ steps.plan.output }}', depends_on: plann}\n"
        "  - {id: b, prompt: '{{ steps.plan.output }}', depends_on: a}\n"
    )
    assert problems(path) == ["w.yaml:5:60: unknown step 'plann'; did you mean 'plan'?"]


@pytest.mark.parametrize(
    ("schema", "way", "known"),
    [
        ({}, "x", True),
        (True, "x", True),
        ({"properties": {"a": {}}}, "x", True),
        ({"properties": {"a": {}}, "additionalProperties": False}, "x", False),
        ({"additionalProperties": False, "patternProperties": {"^x": {}}}, "x", True),
        ({"additionalProperties": {"type": "string"}}, "x", True),
        ({"type": "object", "additionalProperties": False}, "items", True),
        ({"type": ["array", "null"]}, "x", False),
        ({"type": ["array", "object"]}, "x", True),
        ({"type": "any of old"}, "x", True),
        ({"allOf": [{"additionalProperties": False}]}, "x", True),
        ({"$ref": "#"}, "x", True),
        ({"$ref": "other.json"}, "x", True),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}, "x", False),
        ({"$ref": "#/$defs/b", "$defs": {"a": {"type": "string"}}}, "x", True),
        ({"type": "array", "items": {"type": "string"}}, "x", False),
        ({"type": "array", "items": {"type": "string"}}, "[3].x", False),
        ({"type": "array", "items": {"type": "string"}}, "[3].title", True),
        ({"type": "array", "prefixItems": [{}], "items": {"type": "string"}}, "[0].x", True),
        ({"type": ["array", "string"], "items": {"type": "integer"}}, "[0].x", True),
    ],
)
def test_only_what_no_value_of_a_schema_has_is_missing(
    schema: object, way: str, known: bool, folder: Path
) -> None:
    way = way if way.startswith("[") else f".{way}"
    files = Files(folder)
    step = {"id": "a", "prompt": "go", "output": {"schema": schema}}
    steps = steps_of({"steps": [step, {"id": "b"}]})
    names = KnownNames({}, steps, lambda step_id: {"a"}, files)
    text = f"{{{{ steps.a.output{way} }}}}"
    faults = list(check_template(text, ("x",), lambda: names.late("b"), files))
    assert (faults == []) is known


NAMES = st.sampled_from(["steps", "params", "run", "workflow", "context", "x", "m", "f", "zzz"])
READ = st.sampled_from([".plan", ".output", ".tasks", ".x", "['x']", "[0]", "[x]", "[1:2]", "(x)"])
FORMS = st.sampled_from(
    [
        *("{} + {}", "{} if {} else x", "not {} or {}", "{} in {}", "({}, {})", "-{}[{}]"),
        *("{} is defined and {}", "{} | default({})", "{} | map(attribute={})", "{} is zzz({})"),
    ]
)
EXPRESSIONS = st.recursive(
    st.builds("{}{}".format, NAMES, st.lists(READ, max_size=4).map("".join))
    | st.sampled_from(["1", "'x'", "[]", "{'x': 1}", "none", "run"]),
    lambda inner: st.builds(str.format, FORMS, inner, inner),
    max_leaves=5,
)
BLOCKS = st.sampled_from(
    [
        *("{{% if {0} %}}{1}{{% elif {0} %}}{{% else %}}{1}{{% endif %}}", "{{{{ {0} }}}}{1}"),
        *("{{% for x in {0} if {0} %}}{1}{{% endfor %}}", "{{% set x = {0} %}}{1}"),
        *("{{% set x %}}{1}{{% endset %}}", "{{% with x = {0} %}}{1}{{% endwith %}}"),
        *(
            "{{% macro f(x, m={0}) %}}{1}{{% endmacro %}}",
            "{{% call(x) f({0}) %}}{1}{{% endcall %}}",
        ),
        *("{{% block b %}}{1}{{% endblock %}}", "{{% filter upper %}}{1}{{% endfilter %}}"),
        *("{{% include {0} %}}{1}", "{{% include 'prompts/here.md' %}}{1}", "{{% do {0} %}}{1}"),
        *("{{% import 'prompts/here.md' as m %}}{1}", "{{% extends 'prompts/here.md' %}}{1}"),
        "{{% from 'prompts/here.md' import f with context %}}{1}",
    ]
)
TEMPLATES = st.recursive(
    st.just("text"),
    lambda inner: (
        st.builds(str.format, BLOCKS, EXPRESSIONS, inner)
        | st.builds("{}\n {}".format, inner, inner)
    ),
    max_leaves=6,
)
# What no Jinja is, or not where it stands.
PIECES = st.sampled_from(
    [
        *("{{ ", " }}", "{% ", " %}", "{#", "#}", "{%- ", " -%}", "\n", "\r\n", "\r", " ", "é"),
        *("steps", ".plan", "['x']", "[1:2]", "params", "run", ".id", "for x in ", "endfor"),
        *("if ", "else", "endif", "set x = ", "endset", "macro f(x)", "endmacro", "block b"),
        *("endblock", "super()", "include ", "'prompts/here.md'", "extends ", "import ", " as m"),
        *("from ", " is ", " | ", "upper", "raw", "endraw", "do ", "(", ")", "[", "]", "{", "}"),
        *(" ~ ", "-", "1", '"', "'", "\\", "autoescape true", "trans", "x.y", "in", "\0", "\ud800"),
    ]
)
TEXTS = TEMPLATES | st.lists(PIECES | st.text(max_size=5), max_size=25).map("".join)


@given(TEXTS)
@example("{{ " + "-" * 3000 + "1 }}")
@example("{{ a" + ".b" * 5000 + " }}")
@example("{% if a %}" * 2000)
@example("{% include 'prompts/here.md' %}" * 50)
@example("{% extends 'prompts/here.md' %}{% block b %}{{ super() }}{% endblock %}")
@example("{{ '\\N{nothing}' }}")
@example("{{ 1" + "0" * 400 + ".0 }}")
@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_text_makes_located_problems_or_none(workflow: Path, text: str) -> None:
    write(workflow, here=text)
    lines = re.split("\r\n|\r|\n", text)
    try:
        read_definition(workflow, "w.yaml")
    except InvalidWorkflow as error:
        for problem in error.problems:
            assert problem.text
            if problem.file == "../prompts/here.md":
                assert 1 <= problem.line <= len(lines)
                assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1


@given(TEXTS)
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_text_in_the_definition_is_wrong_where_a_file_would_be(folder: Path, text: str) -> None:
    text = "Do:\n" + re.sub("\r\n|\r", "\n", re.sub("[\ud800-\udfff\0]", "", text))
    (folder.parent / "prompts" / "here.md").write_text(text)
    path = folder / "w.json"
    found = []
    for prompt in (text, "prompts/here.md"):
        step = {"id": "a", "agent": "codex", "prompt": prompt}
        path.write_text(json.dumps({"name": "w", "steps": [step]}, ensure_ascii=False))
        try:
            read_definition(path, path.name)
        except InvalidWorkflow as error:
            found.append(error.problems)
        else:
            found.append(())
    inline, filed = found
    said = [problem.text.removeprefix("for 'a' of w.json: ") for problem in filed]
    own = [problem.text for problem in inline]
    # Where a template includes itself by its file, there are errors of that file too.
    if "prompts/here.md" in text:
        return
    assert own == said
    written = json.dumps({"name": "w", "steps": [{**step, "prompt": text}]}, ensure_ascii=False)
    for problem, other in zip(inline, filed, strict=True):
        character = text.split("\n")[other.line - 1][other.column - 1 : other.column]
        if character.strip():
            assert written[problem.column - 1] in (character, "\\")
