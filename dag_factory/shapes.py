"""What is known, before a run, of the values that templates read: which keys they have."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol

from dag_factory.errors import nearest, show
from dag_factory.templates import ELEMENT


class Missing(NamedTuple):
    """What a value does not have.

    :param text: the error: what is wrong, and after a semicolon what is right.
    """

    text: str


class Shape(Protocol):
    """What is known of a value."""

    def part(self, key: str | int) -> Shape | Missing | None:
        """Return what is known of a part of the value; None for nothing.

        :param key: a key or an attribute, or :data:`~dag_factory.templates.ELEMENT`.
        """


class Fields:
    """A mapping whose keys are all known.

    :param title: what it is called in errors.
    :param fields: its keys, each with what is known of its value.
    :param python: its type, whose methods a template may call.
    """

    def __init__(self, title: str, fields: Mapping[str, Shape | None], python: type = dict) -> None:
        self.title = title
        self.fields = fields
        self.python = python

    @property
    def names(self) -> Collection[str]:
        """The keys."""
        return self.fields.keys()

    def part(self, key: str | int) -> Shape | Missing | None:
        """See :class:`Shape`."""
        if not isinstance(key, str) or (key not in self.fields and hasattr(self.python, key)):
            return None
        return self.fields[key] if key in self.fields else Missing(self.missing(key))

    def missing(self, key: str) -> str:
        """Return what is said of a key that there is not."""
        return f"{self.title} has no {show(key)}; {nearest(key, self.fields)}"


class PlainText:
    """A text.

    :param title: what it is called in errors.
    :param advice: what would give it what it does not have.
    """

    def __init__(self, title: str, advice: str) -> None:
        self.title = title
        self.advice = advice

    def part(self, key: str | int) -> Missing | None:
        """See :class:`Shape`."""
        if not isinstance(key, str) or hasattr(str, key):
            return None
        return Missing(f"{self.title} is plain text, which has no {show(key)}; {self.advice}")


# What a JSON type is in Python, whose attributes a template can read too.
_TYPES: dict[str, type] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "null": type(None),
}
_MOST_REFERENCES = 20


class OfSchema:
    """A value that fits a JSON schema.

    Only what every value of the schema lacks is missing: keywords that the schema has besides can
    forbid more, but allow nothing that ``properties`` with ``additionalProperties: false`` does
    not.

    :param title: what the value is called in errors.
    :param schema: its schema.
    :param root: the schema that references are looked up in.
    """

    def __init__(self, title: str, schema: Any, root: Any) -> None:
        self.title = title
        self.schema = _resolved(schema, root)
        self.root = root

    def part(self, key: str | int) -> Shape | Missing | None:
        """See :class:`Shape`."""
        types = _types(self.schema)
        if types is None:
            return None
        if key == ELEMENT or not isinstance(key, str):
            return self._element(types)
        if "object" in types:
            properties = _mapping(self.schema.get("properties"))
            if key in properties:
                return OfSchema(f"{show(key)} of {self.title}", properties[key], self.root)
            if not _is_closed(self.schema):
                return None
        if any(hasattr(_TYPES[name], key) for name in types):
            return None
        return Missing(self._missing(key, types))

    def _element(self, types: Collection[str]) -> Shape | None:
        items = self.schema.get("items")
        only_lists = set(types) <= {"array", "null"} and "prefixItems" not in self.schema
        if only_lists and isinstance(items, dict):
            return OfSchema(f"an item of {self.title}", items, self.root)
        return None

    def _missing(self, key: str, types: Collection[str]) -> str:
        if "object" in types:
            known = _mapping(self.schema.get("properties"))
            return f"{self.title} has no {show(key)}; {nearest(key, known)}"
        kinds = " or ".join(sorted(types))
        return (
            f"by its schema, {self.title} is of type {kinds}, which has no {show(key)}; "
            "change either"
        )


def _resolved(schema: Any, root: Any) -> Any:
    """Return what a schema refers to, None if that is not in it."""
    for _ in range(_MOST_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if reference is None:
            return schema
        schema = _referred(reference, root)
    return None


def _referred(reference: Any, root: Any) -> Any:
    if not isinstance(reference, str) or not re.match("#(/|$)", reference):
        return None
    found = root
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        # A schema within it that has a name of its own changes what references mean.
        if not isinstance(found, dict) or key not in found or "$id" in _mapping(found[key]):
            return None
        found = found[key]
    return found


def _types(schema: Any) -> Collection[str] | None:
    """Return the types that a value can be of, None if nothing is known."""
    if not isinstance(schema, dict):
        return None
    given = schema.get("type", list(_TYPES))
    types = given if isinstance(given, list) else [given]
    return types if all(isinstance(name, str) and name in _TYPES for name in types) else None


def _is_closed(schema: dict[str, Any]) -> bool:
    return schema.get("additionalProperties") is False and not schema.get("patternProperties")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def of_value(title: str, value: Any) -> Shape | None:
    """Return what is known of a value that stands in a definition, once its texts are rendered.

    :param title: what it is called in errors.
    :param value: the value.
    """
    if isinstance(value, dict):
        return Fields(
            title,
            {key: of_value(f"{show(key)} of {title}", item) for key, item in value.items()},
        )
    if isinstance(value, str):
        return PlainText(title, "a template makes text of whatever goes in")
    return None
