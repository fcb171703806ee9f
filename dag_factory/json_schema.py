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
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from dag_factory.definition import KINDS, Defaults, Workflow
from dag_factory.json_schema_rules import (
    FIELDS,
    MODELS,
    SHARED_KEY,
    VALIDATORS,
    VALUE_KEY,
    shared_definitions,
)

_PARAM = re.compile(r"^:param (\w+): (.*(?:\n[ ]+.*)*)", re.MULTILINE)
# A key whose value is a choice of models, in place of what tells them from each other.
_KINDS_KEY = "one of the kinds"
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


def workflow_schema(language: type[BaseModel] = Workflow) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a workflow's file.

    :param language: the model of the whole.
    :raises TypeError: if a key is not described, or a validator has no rule.
    """
    schema = language.model_json_schema(schema_generator=_Generator)
    definitions = {**schema.pop("$defs", {}), **shared_definitions()}
    linked = _Linker(definitions).linked({**schema, "$defs": definitions})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Workflow of coding agents",
        **linked,
        "$defs": dict(sorted(linked["$defs"].items())),
    }


def schema_text() -> str:
    """Return the schema as the text of its file."""
    return json.dumps(workflow_schema(), indent=2, ensure_ascii=False) + "\n"


class _Linker:
    """Puts in place what the rules could only name, as it says what models say elsewhere.

    :param definitions: all definitions, by name.
    """

    def __init__(self, definitions: dict[str, JsonSchemaValue]) -> None:
        self._definitions = definitions

    def linked(self, node: Any) -> Any:
        """Return a part of the schema with everything in place."""
        if isinstance(node, list):
            return [self.linked(item) for item in node]
        if not isinstance(node, dict):
            return node
        if VALUE_KEY in node:
            return self.linked(self._value(node))
        if _KINDS_KEY in node:
            return self.linked(self._by_kind(node[_KINDS_KEY]))
        said = {key: self.linked(value) for key, value in node.items()}
        if SHARED_KEY in said:
            return {"$ref": f"#/$defs/{said.pop(SHARED_KEY)}", **said}
        return said

    def _model(self, reference: JsonSchemaValue) -> JsonSchemaValue:
        return self._definitions[reference["$ref"].removeprefix("#/$defs/")]

    def _value(self, node: JsonSchemaValue) -> JsonSchemaValue:
        """Return what the value of a model's key is, where the key is given."""
        said = self._model(node)["properties"][node[VALUE_KEY]]
        choices = [choice for choice in said.get("anyOf", [said]) if choice != {"type": "null"}]
        bare = [
            {key: value for key, value in choice.items() if key not in ("description", "default")}
            for choice in choices
        ]
        return bare[0] if len(bare) == 1 else {"anyOf": bare}

    def _by_kind(self, choices: list[JsonSchemaValue]) -> JsonSchemaValue:
        """Return the schema of a mapping of one of several kinds, each known by a key of its own.

        Unlike a plain choice it lets an editor say what is wrong with the kind that was meant. A
        mapping with no such key is of the first kind.

        :param choices: references to what a mapping of each kind is.
        """
        models = [self._model(choice) for choice in choices]
        common = set.intersection(*(set(model["required"]) for model in models))
        keys = [next(key for key in model["required"] if key not in common) for model in models]
        said = choices[0]
        for key, choice in zip(keys[1:], choices[1:], strict=True):
            said = {"if": {"required": [key]}, "then": choice, "else": said}
        described = {
            key: {"description": model["properties"][key]["description"]}
            for key, model in zip(keys, models, strict=True)
        }
        return {"type": "object", "properties": described, **said}


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, told what validators accept, and to whom it speaks."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        model: type[BaseModel] = schema["cls"]
        said = super().model_schema(schema)
        del said["title"]
        said["description"] = _summary(model)
        for key, value in said["properties"].items():
            said["properties"][key] = self._field(model, key, value)
        for parent in model.__mro__:
            if rule := MODELS.get(parent.__name__):
                said = rule(said)
        return said

    def _field(self, model: type[BaseModel], key: str, value: JsonSchemaValue) -> JsonSchemaValue:
        ruled = next(
            (
                rule(value)
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
        return VALIDATORS[name](inner)

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
        return {_KINDS_KEY: [self.generate_inner(choice) for choice in choices]}

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        return {_KINDS_KEY: [self.generate_inner(each) for each in schema["choices"].values()]}


def _summary(model: type[BaseModel]) -> str:
    return _spoken((inspect.getdoc(model) or "").split("\n\n", 1)[0])


def _description(model: type[BaseModel], key: str) -> str:
    """Return what the docstring of the model, or of one that it inherits from, says of a key.

    :raises TypeError: if none says anything.
    """
    # The keys of the defaults are those of steps.
    steps = KINDS.values() if model is Defaults else ()
    for place in (*model.__mro__, *(place for step in steps for place in step.__mro__)):
        for name, text in _PARAM.findall(inspect.getdoc(place) or ""):
            if name.rstrip("_") == key:
                return _spoken(text)
    raise TypeError(f"{model.__name__}.{key} is not described; add ':param {key}: …'")


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
