"""What stands in a prompt for what only a run would know: ``«steps.plan.output»``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow_agent_provider.operators.steps import StepResult, Steps

_JINJAS = frozenset(("unsafe_callable", "alters_data", "jinja_pass_arg"))


class Placeholder(str):
    """A text that shows where a value would stand, whatever a template asks of that value.

    Its attributes and items are placeholders again, and it is a list of one of them; a name of
    Python's own texts, such as ``title``, means the value's. As a condition it is true.
    """

    __slots__ = ()

    def __new__(cls, way: str) -> Placeholder:
        """Return the placeholder of an expression.

        :param way: the expression, such as ``steps.plan.output``.
        """
        return super().__new__(cls, f"«{way}»")

    def __getattribute__(self, name: str) -> Any:
        # Jinja's sandbox asks for these before it calls anything.
        if name.startswith("_") or name in _JINJAS:
            return super().__getattribute__(name)
        return Placeholder(f"{_way(self)}.{name}")

    def __getitem__(self, key: Any) -> Placeholder:
        return Placeholder(f"{_way(self)}[{key!r}]") if not isinstance(key, slice) else self

    def __iter__(self) -> Iterator[Placeholder]:
        yield self[0]

    def __len__(self) -> int:
        return 1

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        return Placeholder(f"{_way(self)}(…)")


def _way(placeholder: Placeholder) -> str:
    return str.__str__(placeholder)[1:-1]


class PlaceholderResult(StepResult):
    """The result of a step that has not run: of whatever name, a placeholder.

    :param step_id: the step.
    """

    def __init__(self, step_id: str) -> None:
        super().__init__(step_id, {}, lambda _: b"")
        self._way = f"steps.{step_id}" if step_id.isidentifier() else f"steps[{step_id!r}]"

    def __getitem__(self, name: str) -> Placeholder:
        return Placeholder(f"{self._way}.{name}")


class PlaceholderSteps(Steps):
    """The steps before this one, with a placeholder for what none has left."""

    def _read(self, step_id: str) -> StepResult:
        given = self._pull(step_id)
        return PlaceholderResult(step_id) if given is None else super()._read(step_id)


def readable(text: str) -> str:
    """Return a text with the signs of placeholders as they are, where JSON has them escaped."""
    return text.replace("\\u00ab", "«").replace("\\u00bb", "»")
