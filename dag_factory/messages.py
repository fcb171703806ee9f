"""Pydantic's errors in our words: what is wrong, and what is allowed or the nearest right word."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dag_factory.definition import (
    KIND_BY_KEY,
    KINDS,
    LATER,
    LATER_KINDS,
    Agent,
    Approve,
    Budget,
    Defaults,
    Output,
    Paths,
    Repository,
    Retry,
    Setup,
    StepBase,
    Workflow,
)
from dag_factory.errors import Fault, nearest, show

# The model that a value of this key is held against.
_MODELS: dict[str | None, type[BaseModel]] = {
    None: Workflow,
    "defaults": Defaults,
    "agent": Agent,
    "output": Output,
    "approve": Approve,
    "retry": Retry,
    "paths": Paths,
    "repository": Repository,
    "setup": Setup,
    "budget": Budget,
}

#: The key that says what a step does, by which its kind is known.
_KIND_OF = {key: KINDS[kind] for key, kind in KIND_BY_KEY.items()}

# The numbers that a value of this key may be.
_RANGES = {
    "count": "a whole number from 0 to 100",
    "repair": "a whole number from 0 to 10",
    "max_active_runs": "a whole number from 1 to 100000",
    "priority": "a whole number such as 10",
    "usd": "a number above 0",
    "tokens": "a whole number above 0",
}

# What a value of this key looks like.
_FORMS = {
    "agent": "a name, a mapping of name, model, connection and options, or a list of these",
    "output": "a path, or a mapping of path and schema",
    "retry": "a number, or a mapping of count, delay, backoff, max_delay and on",
    "approve": "the question, or a mapping of subject, body, options, timeout, assignees and "
    "on_reject",
    "options": "a mapping of names to values",
    "assignees": "the id of one of Airflow's users, or a list of ids",
    "pool": "the name of one of Airflow's pools",
    "max_active_runs": "such as 1",
    "priority": "such as 10",
    "on": "the name of a failure class such as Unavailable, or a list of names",
    "verify": "a shell command such as pytest -q, or a list of commands",
    "run": "a shell command such as uv sync, or a list of commands",
    "files": "a file of the workspace such as uv.lock, or a list of files",
    "paths": "a mapping of allow and deny",
    "allow": "a pattern such as src/**, or a list of patterns",
    "deny": "a pattern such as .github/**, or a list of patterns",
    "setup": "a mapping of run and files",
    "budget": "a mapping of usd and tokens",
    "tokens": "such as 2000000",
    "repository": "a URL, or a mapping of url, ref, connection, submodules, lfs and sparse",
    "depends_on": "the id of a step, or a list of ids",
    "schedule": "a cron expression such as '0 6 * * 1-5', a preset such as @daily, or none",
    "steps": "a list of steps, each of which starts with '- id: …'",
    "params": "a mapping of names to JSON schemas such as {type: string, default: x}",
    "tags": "a list such as [docs, nightly]",
    "context": "a mapping of names to values",
    "defaults": "a mapping of keys that steps have too",
    None: "a workflow is a mapping that has a name and steps",
}


def translate(error: ValidationError) -> Iterator[Fault]:
    """Yield what pydantic found wrong with a :class:`~dag_factory.definition.Workflow`."""
    for details in error.errors(include_url=False):
        details = _without_kind(details)
        if not _follows_from_kind(details):
            yield _TRANSLATIONS.get(details["type"], _other)(details)


def _without_kind(details: ErrorDetails) -> ErrorDetails:
    """Return the details with a step's kind beside the path, where pydantic has it inside."""
    kind = next((part for part in details["loc"] if part in KINDS), None)
    path = tuple(part for part in details["loc"] if part not in KINDS)
    return {**details, "loc": path, "ctx": {**details.get("ctx", {}), "kind": kind}}


def _follows_from_kind(details: ErrorDetails) -> bool:
    """Return whether only a step that is not supported yet, and reported as such, lacks a key."""
    return details["type"] == "missing" and not LATER_KINDS.isdisjoint(details["input"])


def _key(details: ErrorDetails) -> str | None:
    return next((part for part in reversed(details["loc"]) if isinstance(part, str)), None)


def _model(details: ErrorDetails) -> type[BaseModel]:
    """Return the model that lacks a key, or has one too many: the last of the path."""
    key = next((part for part in reversed(details["loc"][:-1]) if isinstance(part, str)), None)
    return KINDS[details["ctx"]["kind"]] if key == "steps" else _MODELS[key]


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _called(details: ErrorDetails) -> str:
    """Return how the value is called: by its key, and in a list by its number from 1."""
    path = details["loc"]
    if not path:
        return "the file"
    if isinstance(path[-1], int):
        return f"item {path[-1] + 1} of {_key(details)!r}"
    return repr(path[-1])


def _unknown_key(details: ErrorDetails) -> Fault:
    path, model = details["loc"], _model(details)
    key = str(path[-1])
    if key in LATER.get(model.__name__, ()):
        return Fault(path, f"{key!r} is not supported yet; remove it", at_key=True)
    if place := _right_place(model, key):
        return Fault(path, f"{key!r} cannot stand here; {place}", at_key=True)
    return Fault(path, f"unknown key {show(key)}; {nearest(key, _keys(model))}", at_key=True)


def _right_place(model: type[BaseModel], key: str) -> str | None:
    """Return where a key of the language belongs, None if it is no key of the language."""
    if issubclass(model, StepBase):
        if key in ("budget", "defaults", "repository", "schedule", "setup"):
            return "it is for the whole workflow, so move it to the file's top level"
        others = [doing for doing, kind in _KIND_OF.items() if key in _keys(kind)]
        if key in others:
            own = next(doing for doing, kind in _KIND_OF.items() if kind is model)
            return f"the step has a {own!r} already, and does one thing; make it two steps"
        if others:
            return f"it is for a step with {' or '.join(map(repr, others))}"
    if model is Workflow and key in _keys(Defaults):
        return "it is for steps, so put it under 'defaults' or into a step"
    if model in (Workflow, Defaults) and any(key in _keys(kind) for kind in KINDS.values()):
        return "it is for one step, so move it there"
    return None


def _missing(details: ErrorDetails) -> Fault:
    path, key = details["loc"][:-1], details["loc"][-1]
    model, step_id = _model(details), details["input"].get("id")
    if not issubclass(model, StepBase):
        return Fault(path, f"the {model.__name__.lower()} has no {key!r}; add it")
    step = f"step {show(step_id)}" if isinstance(step_id, str) else "the step"
    other = _or_kind(str(key)) if key in _KIND_OF and "agent" not in details["input"] else ""
    return Fault(path, f"{step} has no {key!r}; add it{other}")


def _or_kind(key: str) -> str:
    """Return the end of an error about a step that does not say what is to be done."""
    others = [other for other in _KIND_OF if other != key]
    return f", or {' or '.join(map(repr, others))} for a step of another kind"


def _wrong_type(expected: str, advice: str) -> Callable[[ErrorDetails], Fault]:
    def translation(details: ErrorDetails) -> Fault:
        called, value = _called(details), details["input"]
        if value is None:
            return Fault(details["loc"], f"{called} is empty; give it a value, or remove it")
        form = _FORMS.get(_form_key(details), advice)
        return Fault(details["loc"], f"{called} is {show(value)}, not {expected}; {form}")

    return translation


def _form_key(details: ErrorDetails) -> str | None:
    # The form of a list's key says nothing of its items, except that steps are mappings.
    path = details["loc"]
    if path and isinstance(path[-1], int):
        return "item"
    return _key(details)


def _text(details: ErrorDetails) -> Fault:
    quotable = isinstance(details["input"], bool | int | float)
    advice = "put it in quotes" if quotable else "write it as one text"
    return _wrong_type("text", advice)(details)


def _mapping(details: ErrorDetails) -> Fault:
    if details["loc"][:1] == ("steps",) and len(details["loc"]) == 2:
        return _wrong_type("a mapping", "a step starts with '- id: …'")(details)
    if details["loc"][:1] == ("params",) and len(details["loc"]) > 1:
        return _wrong_type("a JSON schema", "such as {type: string, default: x}")(details)
    if _key(details) == "agent":
        form = "a name, or a mapping of name, model, connection and options"
        return _wrong_type("a mapping", form)(details)
    return _wrong_type("a mapping", "write 'key: value' in lines of their own")(details)


def _choice(details: ErrorDetails) -> Fault:
    allowed = re.findall("'([^']*)'", str(details.get("ctx", {}).get("expected")))
    value = details["input"]
    hint = nearest(value, allowed) if isinstance(value, str) else f"allowed: {', '.join(allowed)}"
    return Fault(details["loc"], f"{_called(details)} cannot be {show(value)}; {hint}")


def _range(details: ErrorDetails) -> Fault:
    allowed = _RANGES[str(details["loc"][-1])]
    return Fault(details["loc"], f"{_called(details)} is {show(details['input'])}; {allowed}")


def _empty(details: ErrorDetails) -> Fault:
    return Fault(details["loc"], f"{_called(details)} is empty; give it a value, or remove it")


def _too_long(details: ErrorDetails) -> Fault:
    longest = details.get("ctx", {}).get("max_length")
    return Fault(details["loc"], f"{_called(details)} is too long; at most {longest} characters")


def _own(details: ErrorDetails) -> Fault:
    return Fault(details["loc"], str(details["ctx"]["error"]))


def _other(details: ErrorDetails) -> Fault:
    message = details["msg"]
    form: Any = _FORMS.get(_key(details), "see the workflow language")
    return Fault(details["loc"], f"{_called(details)}: {message[:1].lower()}{message[1:]}; {form}")


_TRANSLATIONS: dict[str, Callable[[ErrorDetails], Fault]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "string_type": _text,
    "int_type": _wrong_type("a whole number", "such as 3"),
    "float_type": _wrong_type("a number", "such as 5 or 0.5"),
    "bool_type": _wrong_type("true or false", "write true or false"),
    "list_type": _wrong_type("a list", "write [a, b]"),
    "dict_type": _mapping,
    "model_type": _mapping,
    "literal_error": _choice,
    "greater_than": _range,
    "greater_than_equal": _range,
    "less_than_equal": _range,
    "too_short": _empty,
    "string_too_short": _empty,
    "string_too_long": _too_long,
    "value_error": _own,
}
