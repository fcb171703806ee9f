"""Where a prompt comes from: a template's file, a text that was fetched, or the step's own text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import BaseLoader, FileSystemLoader, TemplateNotFound

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class PromptSource:
    """A text that went into a prompt.

    :param name: the template's name, URL or step.
    :param sha256: hexadecimal digest of its text, as read.
    :param version: the version that was read, for a template in versioned object storage.
    """

    name: str
    sha256: str
    version: str | None = None


class PromptLoader(BaseLoader):
    """Finds templates in the given texts first, then in the folders; notes what it read.

    :param folders: where template names are looked up, in this order.
    :param texts: texts that are not files, by name, each with the version that was read.
    """

    def __init__(
        self, folders: Sequence[str], texts: dict[str, tuple[str, str | None]] | None = None
    ) -> None:
        self._folders = [folder for folder in folders if folder]
        self._files = FileSystemLoader(self._folders)
        self._texts = texts or {}
        self.sources: dict[str, PromptSource] = {}

    def get_source(
        self, environment: Environment, template: str
    ) -> tuple[str, str | None, Callable[[], bool] | None]:
        """Return the text of ``template``; see :class:`jinja2.BaseLoader`."""
        if template in self._texts:
            text, version = self._texts[template]
            self._note(template, text, version)
            # A file name that no file has, so that Jinja names the template in its tracebacks.
            return text, template, None
        try:
            text, filename, fresh = self._files.get_source(environment, template)
        except TemplateNotFound as error:
            places = ", ".join(str(Path(folder)) for folder in self._folders) or "no folder"
            raise TemplateNotFound(
                template, f"there is no template {template!r} in {places}"
            ) from error
        self._note(template, text, None)
        return text, filename, fresh

    def _note(self, name: str, text: str, version: str | None) -> None:
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.sources[name] = PromptSource(name, digest, version)
