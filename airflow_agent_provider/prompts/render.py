"""Template and context make the prompt.

Jinja is Airflow's own environment, made strict: an undefined name is an error that says where, and
which names there are. Text that earlier steps wrote goes in as data; nothing is rendered twice.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import StrictUndefined, TemplateError, TemplateNotFound, TemplateSyntaxError, Undefined
from jinja2.exceptions import UndefinedError

from airflow_agent_provider.agents.failures import AgentFailure, InvalidDefinition
from airflow_agent_provider.prompts.sources import PromptLoader, PromptSource

if TYPE_CHECKING:
    from jinja2 import Environment

_MOST_NAMES = 40
_EXPRESSION = re.compile(r"\{\{-?(?P<inside>(?:(?!\}\}|\{\{).)*?)-?\}\}", re.DOTALL)
#: Texts that are a truth value: how templates and commands write one.
_TRUTHS = {"true": True, "false": False, "": False}


class PromptError(InvalidDefinition):
    """A prompt cannot be made; the reason names the template and the line."""


@dataclass(frozen=True)
class Prompt:
    """A resolved prompt.

    :param text: what the agent gets.
    :param sources: what it was made of.
    """

    text: str
    sources: tuple[PromptSource, ...] = ()

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class _Undefined(StrictUndefined):
    """Says which names there are: of the object that was asked, or in the template's context."""

    @property
    def _undefined_message(self) -> str:
        message = super()._undefined_message
        owner = self._undefined_obj
        # An accessor such as `steps` knows its own names.
        names = getattr(owner, "prompt_names", None)
        if names is not None:
            message = f"{owner!r} has no attribute {self._undefined_name!r}"
        elif isinstance(owner, Mapping) and owner:
            names = list(owner)
        else:
            return message
        listed = ", ".join(sorted(map(str, names))[:_MOST_NAMES])
        return f"{message}; there are: {listed or 'none'}"


class Renderer:
    """Renders the templates of one step.

    :param environment: Airflow's template environment of the DAG; it is not changed.
    :param folders: where template names are looked up, in this order.
    :param names: the names that templates may use, beside Airflow's own.
    :param airflow: Airflow's own names.
    :param texts: templates that are not files, by name, each with the version that was read.
    """

    def __init__(
        self,
        environment: Environment,
        folders: Sequence[str],
        names: Mapping[str, Any],
        airflow: Mapping[str, Any] | None = None,
        texts: dict[str, tuple[str, str | None]] | None = None,
    ) -> None:
        self._loader = PromptLoader(folders, texts)
        self._environment = environment.overlay(undefined=_Undefined, keep_trailing_newline=False)
        self._environment.loader = self._loader
        # An overlay shares its parent's cache, in which other folders' templates may stand.
        self._environment.cache = None
        self._names = dict(names)
        self._all = {**(airflow or {}), **names}

    def prompt(self, name: str) -> Prompt:
        """Render the template ``name``.

        :raises PromptError: if it is missing, not valid, or names what there is not.
        """
        text = self._render(name, lambda: self._environment.get_template(name))
        if not text.strip():
            raise PromptError(f"{name}: the prompt is empty")
        return Prompt(text.rstrip() + "\n", tuple(self._loader.sources.values()))

    def value(self, value: Any, where: str) -> Any:
        """Render every text in ``value``, which may be nested; other values stay as they are.

        :param where: names the value in errors.
        """
        if isinstance(value, str):
            return self._render(where, lambda: self._environment.from_string(value))
        if isinstance(value, Mapping):
            return {key: self.value(item, f"{where}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item, f"{where}[{n}]") for n, item in enumerate(value)]
        return value

    def command(self, text: str, where: str) -> str:
        """Render the template of a shell command; each value goes in as one quoted word.

        So a value that an agent or a user wrote is data for the command, and never a command.

        :param where: names the command in errors.
        """
        shell = self._environment.overlay(finalize=_one_word)
        return self._render(where, lambda: shell.from_string(text))

    def truth(self, template: str, where: str) -> bool:
        """Return whether an expression is true: ``{{ steps.review.output.approved }}``.

        :param template: the expression, in the braces of a template and nothing else.
        :param where: names it in errors.
        :raises PromptError: if it cannot be evaluated, or is a text other than true and false.
        """
        value = self.expression(template, where)
        if not isinstance(value, str):
            return bool(value)
        said = _TRUTHS.get(value.strip().lower())
        if said is None:
            raise PromptError(
                f"{where}: {template} is the text {value[:80]!r}, which is neither true nor false; "
                "compare it, as in {{ steps.review.output == 'good' }}, or let the step that it "
                "comes from have a schema"
            )
        return said

    def expression(self, template: str, where: str) -> Any:
        """Return the value of an expression, of whatever type it is.

        :param template: the expression, in the braces of a template and nothing else.
        :param where: names it in errors.
        :raises PromptError: if it is none, or cannot be evaluated.
        """
        inside = expression_of(template)
        if inside is None:
            raise PromptError(f"{where}: {template!r} is no expression; write {{{{ … }}}}")

        def evaluate() -> Any:
            compiled = self._environment.compile_expression(inside, undefined_to_none=False)
            value = compiled(self._all)
            if isinstance(value, Undefined):
                # Whatever is done with it raises the error that names it.
                str(value)
            return value

        return self._located(where, evaluate)

    def _render(self, name: str, load: Any) -> str:
        return str(self._located(name, lambda: load().render(self._all)))

    def _located(self, name: str, evaluate: Callable[[], Any]) -> Any:
        try:
            return evaluate()
        except AgentFailure:
            raise
        except TemplateSyntaxError as error:
            raise PromptError(f"{error.name or name}:{error.lineno}: {error.message}") from error
        except TemplateNotFound as error:
            raise PromptError(f"{name}: {error.message}") from error
        except UndefinedError as error:
            raise PromptError(
                f"{_place(error, name)}: {error.message}{self._hint(error)}"
            ) from error
        except TemplateError as error:
            raise PromptError(f"{_place(error, name)}: {error.message}") from error
        except Exception as error:  # whatever an expression of the template raised
            reason = f"{type(error).__name__}: {error}"
            raise PromptError(f"{_place(error, name)}: {reason}") from error

    def _hint(self, error: UndefinedError) -> str:
        if "there are: " in str(error.message) or "is undefined" not in str(error.message):
            return ""
        return f"; there are: {', '.join(sorted(self._names))}, and Airflow's own names"


def expression_of(template: str) -> str | None:
    """Return what stands in the braces of ``{{ … }}``; None where there is anything else."""
    found = _EXPRESSION.fullmatch(template.strip())
    return found["inside"] if found else None


def _one_word(value: Any) -> str:
    return shlex.quote(str(value))


def _place(error: BaseException, name: str) -> str:
    """Return ``template:line`` of the template's innermost line in the error's traceback."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == "<template>" or frame.name.startswith(
            ("top-level template", "block ")
        ):
            shown = name if frame.filename == "<template>" else frame.filename
            return f"{shown}:{frame.lineno}"
    return name
