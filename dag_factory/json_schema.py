"""The workflow language as one JSON Schema, for editors; derived from its models.

Shapes, kinds and numbers come from :mod:`dag_factory.definition`, the descriptions from its
docstrings, and what validators and checks say from :mod:`dag_factory.json_schema_rules`. Nothing
here is used where Airflow parses, so it may take its time.
"""

from __future__ import annotations

import inspect
import json
import re
from datetime import timedelta
from functools import reduce
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from dag_factory.definition import Workflow
from dag_factory.json_schema_rules import (
    FIELDS,
    MODELS,
    SHARED_KEY,
    VALIDATORS,
    Rule,
    shared_definitions,
)

_PARAM = re.compile(r"^:param (\w+): (.*(?:\n[ ]+.*)*)", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


def workflow_schema(language: type[BaseModel] = Workflow) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a workflow's file.

    :param language: the model of the whole.
    :raises TypeError: if a key is not described, or a validator has no rule.
    """
    schema = language.model_json_schema(schema_generator=_Generator)
    definitions = {**schema.pop("$defs", {}), **shared_definitions()}
    linked = _linked({**schema, "$defs": definitions})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Workflow of coding agents",
        **linked,
        "$defs": dict(sorted(linked["$defs"].items())),
    }


def schema_text() -> str:
    """Return the schema as the text of its file."""
    return json.dumps(workflow_schema(), indent=2, ensure_ascii=False) + "\n"


def _linked(node: Any) -> Any:
    """Return ``node`` with references to shared definitions in place of what marks them."""
    if isinstance(node, dict):
        return {
            **({"$ref": f"#/$defs/{node[SHARED_KEY]}"} if SHARED_KEY in node else {}),
            **{key: _linked(value) for key, value in node.items() if key != SHARED_KEY},
        }
    return [_linked(item) for item in node] if isinstance(node, list) else node


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, told what validators accept, and to whom it speaks."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        model: type[BaseModel] = schema["cls"]
        said = super().model_schema(schema)
        del said["title"]
        said["description"] = _summary(model)
        for key, value in said["properties"].items():
            said["properties"][key] = self._field(model, key, value)
        return _apply(MODELS, model, said, self._resolved)

    def _field(self, model: type[BaseModel], key: str, value: JsonSchemaValue) -> JsonSchemaValue:
        ruled = next(
            (
                rule(value, self._resolved)
                for parent in model.__mro__
                if (rule := FIELDS.get(f"{parent.__name__}.{key}"))
            ),
            value,
        )
        # An editor shows the description of what a reference names, unless there is one beside it.
        return {"description": _description(model, key), **ruled}

    def function_before_schema(
        self, schema: core_schema.BeforeValidatorFunctionSchema
    ) -> JsonSchemaValue:
        return self._validated(schema, super().function_before_schema(schema))

    def function_after_schema(
        self, schema: core_schema.AfterValidatorFunctionSchema
    ) -> JsonSchemaValue:
        return self._validated(schema, super().function_after_schema(schema))

    def _validated(self, schema: Any, inner: JsonSchemaValue) -> JsonSchemaValue:
        name = schema["function"]["function"].__qualname__
        if name not in VALIDATORS:
            raise TypeError(
                f"the validator {name} has no rule in dag_factory/json_schema_rules.py; "
                "say there what JSON Schema can say of it"
            )
        return VALIDATORS[name](inner, self._resolved)

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        default = self.get_default_value(schema)
        if isinstance(default, timedelta):
            default = _duration(default)
        # What is none or empty by default tells a reader nothing.
        return (
            {**inner, "default": default} if isinstance(default, str | int) and default else inner
        )

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        choices = inner["anyOf"] if inner.keys() == {"anyOf"} else [inner]
        return {"anyOf": [*choices, {"type": "null"}]}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def union_schema(self, schema: core_schema.UnionSchema) -> JsonSchemaValue:
        choices = [*core_schema.iter_union_choices(schema)]
        return self._by_kind([self.generate_inner(choice) for choice in choices])

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        return self._by_kind([self.generate_inner(each) for each in schema["choices"].values()])

    def _by_kind(self, choices: list[JsonSchemaValue]) -> JsonSchemaValue:
        """Return the schema of a mapping of one of several kinds, each known by a key of its own.

        Unlike a plain choice it lets an editor say what is wrong with the kind that was meant. A
        mapping with no such key is of the first kind.

        :param choices: what a mapping of each kind is.
        """
        models = [self._resolved(choice) for choice in choices]
        common = reduce(set.intersection, (set(model["required"]) for model in models))
        keys = [next(key for key in model["required"] if key not in common) for model in models]
        said = choices[0]
        for key, choice in zip(keys[1:], choices[1:], strict=True):
            said = {"if": {"required": [key]}, "then": choice, "else": said}
        described = {
            key: {"description": model["properties"][key]["description"]}
            for key, model in zip(keys, models, strict=True)
        }
        return {"type": "object", "properties": described, **said}

    def _resolved(self, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return what a reference to a model names; anything else as it is."""
        if "$ref" not in schema:
            return schema
        found = self.get_schema_from_definitions(schema["$ref"])
        if found is None:
            raise TypeError(f"{schema['$ref']} is used within itself, where its keys are needed")
        return found


def _apply(
    rules: dict[str, Rule], model: type[BaseModel], said: JsonSchemaValue, resolved: Any
) -> JsonSchemaValue:
    for parent in model.__mro__:
        if rule := rules.get(parent.__name__):
            said = rule(said, resolved)
    return said


def _summary(model: type[BaseModel]) -> str:
    return _spoken((inspect.getdoc(model) or "").split("\n\n", 1)[0])


def _description(model: type[BaseModel], key: str) -> str:
    """Return what the docstring of the model says of a key, or that of one that inherits it.

    :raises TypeError: if none says anything.
    """
    for place in (*model.__mro__, *_heirs(model)):
        for name, text in _PARAM.findall(inspect.getdoc(place) or ""):
            if name.rstrip("_") == key:
                return _spoken(text)
    raise TypeError(f"{model.__name__}.{key} is not described; add ':param {key}: …'")


def _heirs(model: type[BaseModel]) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    for heir in model.__subclasses__():
        found += [heir, *_heirs(heir)]
    return found


def _spoken(text: str) -> str:
    """Return the text of a docstring as Markdown, a sentence on one line."""
    line = _ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`")
    return f"{line[:1].upper()}{line[1:]}"


def _duration(value: timedelta) -> str:
    seconds = int(value.total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
