"""What JSON Schema can say of the language's validators and checks, beyond what the types say.

A rule takes the schema that the types make, and returns it with what is known besides. It never
refuses what the validator takes; that it takes what the validator refuses cannot be avoided for
what JSON Schema has no words for: what parts of a definition say of each other, and files.

Editors know draft 7 best. A keyword that came later stands here only where an editor that does not
know it refuses nothing more for it. Expressions mean the same to Python and to JavaScript.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

from airflow_agent_provider.agents.prompt_names import PROMPT_SUFFIXES
from airflow_agent_provider.agents.registry import AGENTS
from dag_factory.definition import (
    CREDENTIALS_PATTERN,
    DURATION_PATTERN,
    EXPRESSION_PATTERN,
    NAME_PATTERN,
    RETRYABLE,
)
from dag_factory.schedule import OWN_PARAMS, PRESETS

Schema = dict[str, Any]
#: Takes what the types say, and returns it with what is known besides.
Rule = Callable[[Schema], Schema]

#: A key whose value is the name of a shared definition, in place of a reference to it.
SHARED_KEY = "a shared definition"
#: A key of a mapping, in place of what its value is; the mapping's model stands beside it.
VALUE_KEY = "the value of a key"

# `$` would also stand before a line break at the end, for Python alone.
_END = r"(?![\s\S])"
_NULL = {"type": "null"}
_NOT_NULL = {"not": _NULL}


def _text(pattern: str, message: str) -> Schema:
    """Return the schema of texts of a pattern; ``message`` is what editors say of others."""
    return {"type": "string", "pattern": pattern, "patternErrorMessage": message}


def _also(**keywords: Any) -> Rule:
    """Return a rule that adds keywords; where a schema has one already, both hold."""

    def rule(schema: Schema) -> Schema:
        if schema.keys().isdisjoint(keywords):
            return {**schema, **keywords}
        return {**schema, "allOf": [*schema.get("allOf", []), keywords]}

    return rule


def _pattern(pattern: str, message: str) -> Rule:
    return _also(pattern=pattern, patternErrorMessage=message)


def _in_place(schema: Schema) -> Rule:
    return lambda _: schema


def _shared(name: str) -> Schema:
    return {SHARED_KEY: name}


# --- short forms -------------------------------------------------------------------------------


def _one_or_list(schema: Schema) -> Schema:
    return {"anyOf": [schema["items"], schema]}


def _or_value_of(key: str) -> Rule:
    """Return a rule by which the value of one key may stand for the whole mapping."""
    return lambda schema: {"anyOf": [{VALUE_KEY: key, **schema}, schema]}


def _agents(schema: Schema) -> Schema:
    one = [_shared("AgentName"), schema["items"]]
    several = {**schema, "items": {"anyOf": one}, "uniqueItems": True}
    return {"anyOf": [*one, several]}


# --- texts -------------------------------------------------------------------------------------

_FOLDER = r"(?!\.{1,2}(?:/|" + _END + "))"
_WORKSPACE_PATH = rf"^(?!\.[gG][iI][tT](?:/|{_END})){_FOLDER}[^/\\]+(?:/{_FOLDER}[^/\\]+)*{_END}"
_PATTERN_NAME = rf"{_FOLDER}(?:\*\*(?=/|{_END})|(?:(?!\*\*)[^/\[\]{{}}\\])+)"
_PATH_PATTERN = rf"^(?!!){_PATTERN_NAME}(?:/{_PATTERN_NAME})*{_END}"

_DURATION = (
    # Not nothing, not zero, and no more than a year of days.
    rf"^(?=[0-9dhms]*[1-9])(?!0?(?:36[6-9]|3[7-9][0-9]|[4-9][0-9]{{2}})d|[1-9][0-9]{{3}}d)"
    rf"{DURATION_PATTERN.pattern}{_END}"
)

_ENDING = rf"\.(?:{'|'.join(suffix[1:] for suffix in PROMPT_SUFFIXES)}){_END}"
_PROMPT = (
    rf"^(?:s3://[^/\s]+/\S+{_END}"
    # A file's name leads nowhere else, …
    rf"|(?!s3://)(?!(?=\S*{_ENDING})(?:/|(?:\S*/)?\.\./))"
    # … and what looks like a file's name has the ending of one.
    rf"(?!(?!\S*{_ENDING})(?=\S{{0,255}}{_END})\S*/))"
)

_SCHEMA_FILE = rf"^(?!s3://|/)(?!(?:[^/]*/)*\.\.(?:/|{_END}))[\s\S]"


def _cron_field(beyond: str) -> str:
    """Return the expression of one field of a cron expression.

    :param beyond: expression of the numbers that are too great for it.
    """
    return rf"(?!(?:\S*[,-])?0*(?:{beyond})(?![0-9]))\S+"


_HUNDREDS = "[1-9][0-9]{2,}"
_CRON = r"\s+".join(
    _cron_field(beyond)
    for beyond in (
        f"[6-9][0-9]|{_HUNDREDS}",
        f"2[4-9]|[3-9][0-9]|{_HUNDREDS}",
        f"3[2-9]|[4-9][0-9]|{_HUNDREDS}",
        f"1[3-9]|[2-9][0-9]|{_HUNDREDS}",
        "[89]|[1-9][0-9]+",
    )
)


# --- JSON schemas within a definition ----------------------------------------------------------


def _json_schema() -> Schema:
    """Return the schema of JSON schemas, from the dialect's own; for editors in one piece."""
    keywords: Schema = {}
    parts: Schema = {}
    for vocabulary in ("applicator", "validation", "meta-data"):
        said = REGISTRY.contents(f"https://json-schema.org/draft/2020-12/meta/{vocabulary}")
        keywords |= said["properties"]
        parts |= said.get("$defs", {})

    def in_one_piece(node: Any) -> Any:
        if isinstance(node, list):
            return [in_one_piece(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$dynamicRef" in node:
            return _shared("JsonSchema")
        said = {key: in_one_piece(value) for key, value in node.items() if key != "$ref"}
        if isinstance(node.get("$ref"), str):
            return {**in_one_piece(parts[node["$ref"].rpartition("/")[2]]), **said}
        return said

    return {
        "description": "A JSON Schema.",
        "type": ["object", "boolean"],
        # Of other dialects the keywords may mean something else.
        "if": {"type": "object", "required": ["$schema"]},
        "else": {"properties": in_one_piece(keywords)},
    }


def shared_definitions() -> dict[str, Schema]:
    """Return the definitions that rules refer to, by name."""
    return {
        "AgentName": {
            "description": "; ".join(f"`{name}`: {AGENTS[name].title}" for name in sorted(AGENTS)),
            "enum": sorted(AGENTS),
        },
        "Duration": {
            "description": "A time such as `30s`, `45m`, `2h`, `1d` or `1h30m`; up to `365d`.",
            **_text(_DURATION, "a duration such as 30s, 45m, 2h, 1d or 1h30m, from 1s to 365d"),
        },
        "FailureClass": {
            "description": "A kind of failure that a retry can help.",
            "enum": list(RETRYABLE),
        },
        "JsonSchema": _json_schema(),
        "PathPattern": {
            "description": "Files of the workspace; `*` and `?` stand for parts of a name, `**` "
            "for any folders.",
            **_text(_PATH_PATTERN, "a pattern of the workspace's files such as src/**/*.py"),
        },
        "Schedule": {
            "description": "A cron expression, a preset, or `none`.",
            "anyOf": [
                {"enum": ["none", *PRESETS]},
                _text(
                    rf"^(?!@)\s*{_CRON}\s*{_END}",
                    "a cron expression such as '0 6 * * 1-5', a preset such as @daily, or none",
                ),
            ],
        },
        "WorkspacePath": {
            "description": "A file of the workspace, below it.",
            **_text(_WORKSPACE_PATH, "a path of the workspace such as docs/plan.md"),
        },
    }


# --- the rules ---------------------------------------------------------------------------------


def _mapping_with(key: str, said: Schema) -> Schema:
    """Return the schema of mappings in which a key is given, and its value is of ``said``."""
    return {"type": "object", "required": [key], "properties": {key: said}}


_READS_ONLY = _mapping_with("access", {"const": "read_only"})
# Of a step that may change nothing; what else there is, its own key says.
_MAY_NOT = {"enum": ["allowed", "forbidden", None]}
_HAS_AGENT = _mapping_with("agent", _NOT_NULL)
_HAS_MODEL = _mapping_with("model", _NOT_NULL)


def _any_of(*keys: str) -> Rule:
    """Return a rule by which at least one key has a value."""
    return _also(anyOf=[_mapping_with(key, _NOT_NULL) for key in keys])


def _with(*rules: Schema) -> Rule:
    return lambda schema: {**schema, "allOf": [*schema.get("allOf", []), *rules]}


def _where(given: Schema, **properties: Schema | bool) -> Schema:
    """Return what holds of some keys where ``given`` does.

    Of a whole that must not be, an editor could say no more than that.
    """
    return {"if": given, "then": {"properties": properties}}


def _one_model() -> Rule:
    agent = {"anyOf": [_HAS_MODEL, {"type": "array", "contains": _HAS_MODEL}]}
    said = "the model is given twice; keep 'model' here or under 'agent'"
    return _with(
        _where(_mapping_with("agent", agent), model={"type": "null", "errorMessage": said})
    )


def _models_of_one_vendor(schema: Schema) -> Schema:
    """Say that a model beside a list of agents is given for all of them."""
    same = [
        {"items": {"anyOf": [{"const": name}, _mapping_with("name", {"const": name})]}}
        for name in sorted(AGENTS)
    ]
    several = {"allOf": [_HAS_MODEL, _mapping_with("agent", {"type": "array"})]}
    return _with(_where(several, agent={"anyOf": same}))(schema)


def _workflow(schema: Schema) -> Schema:
    """Say what the defaults and the schedule ask of steps and parameters."""

    def steps(said: Schema) -> Schema:
        return {"properties": {"steps": {"items": said}}}

    own_access = _mapping_with("access", _NOT_NULL)
    scheduled = {"type": "string", "not": {"const": "none"}}
    rules = [
        {
            "if": _mapping_with("defaults", _HAS_AGENT),
            "else": steps({"if": {"required": ["prompt"]}, "then": _HAS_AGENT}),
        },
        {
            "if": _mapping_with("defaults", _READS_ONLY),
            "then": steps({"if": own_access, "else": {"properties": {"changes": _MAY_NOT}}}),
        },
        {
            "if": _mapping_with("schedule", scheduled),
            "then": {"properties": {"params": {"additionalProperties": {"required": ["default"]}}}},
        },
    ]
    return _with(*rules)(schema)


def _distinct(schema: Schema) -> Schema:
    choices = [
        {**choice, "uniqueItems": True} if choice.get("type") == "array" else choice
        for choice in schema["anyOf"]
    ]
    return {**schema, "anyOf": choices}


#: By the name of a validator of :mod:`dag_factory.definition`.
VALIDATORS: dict[str, Rule] = {
    "_name": _pattern(
        f"^{NAME_PATTERN.pattern}{_END}",
        "up to 200 letters, digits, '-', '_' and '.', the first a letter or digit",
    ),
    "_duration": _in_place(_shared("Duration")),
    "_expression": _pattern(
        rf"^\s*{EXPRESSION_PATTERN.pattern}\s*{_END}",
        "one expression in double braces, such as '{{ steps.review.output.approved }}'",
    ),
    "_date": _pattern(rf"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}{_END}", "a date such as 2026-01-31"),
    # Which there are, each machine says for itself.
    "_timezone": _pattern(r"^[^\s/]+(?:/[^\s/]+)*$", "a time zone such as Europe/Berlin or UTC"),
    "_one_or_list": _one_or_list,
    "_repository_url": _pattern(
        f"^(?!{CREDENTIALS_PATTERN})",
        "a URL without credentials; put them into a connection of type git",
    ),
    "_workspace_path": _in_place(_shared("WorkspacePath")),
    "_one_file": _pattern(r"^[^*?]*$", "the path of one file, not a pattern"),
    "_pattern": _in_place(_shared("PathPattern")),
    "_command": _pattern(r"\S", "a shell command such as pytest -q"),
    "_retryable": _in_place(_shared("FailureClass")),
    "_schema": _in_place(
        {
            "anyOf": [
                _text(_SCHEMA_FILE, "the name of a JSON file beside the prompts"),
                {"type": "object", "minProperties": 1, **_shared("JsonSchema")},
            ]
        }
    ),
    "_agents": _agents,
    "_output": _or_value_of("path"),
    "_retry": _or_value_of("count"),
    "_repository": _or_value_of("url"),
    "_approve": _or_value_of("subject"),
    "Output._something": _any_of("path", "schema"),
    "Paths._something": _also(minProperties=1),
    "Budget._something": _any_of("usd", "tokens"),
    "Retry._coherent": _with(
        _where(_mapping_with("backoff", {"const": "none"}), delay=False, max_delay=False)
    ),
    "AgentStep._one_model": _one_model(),
}

#: By the name of a model of :mod:`dag_factory.definition`: what checks ask of its whole.
MODELS: dict[str, Rule] = {
    "AgentStep": _models_of_one_vendor,
    "WorkspaceStep": _with(_where(_READS_ONLY, changes=_MAY_NOT)),
    "Workflow": _workflow,
}

#: By the name of a model and a key of it: what checks ask of the key.
FIELDS: dict[str, Rule] = {
    "Agent.name": _in_place(_shared("AgentName")),
    "AgentStep.prompt": _pattern(
        _PROMPT, "a file that ends in .md, .txt, .j2 or .jinja2, an s3://bucket/key, or a text"
    ),
    "StepBase.depends_on": _distinct,
    "Workflow.schedule": _in_place({"anyOf": [_shared("Schedule"), _NULL]}),
    "Workflow.params": lambda schema: {
        **schema,
        "propertyNames": {"not": {"enum": list(OWN_PARAMS)}},
        "additionalProperties": {"type": "object", **_shared("JsonSchema")},
    },
}
