"""The prompts and schemas that definitions name."""

from __future__ import annotations

import hashlib
import json
import os
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

from dag_factory.errors import one_line, show

#: Bytes that a prompt or schema may have.
MAX_BYTES = 1 << 20


class Files:
    """Reads prompts and schemas: from the definition's folder, then from that folder's parent.

    Definitions of a folder share prompts, so each file is read once. What was read is kept as long
    as this object.

    :param folder: the definition's folder.
    """

    def __init__(self, folder: Path) -> None:
        folder = Path(os.path.abspath(folder))  # noqa: PTH100 - keeps the links of pinned bundles
        self.folders = tuple(dict.fromkeys((str(folder), str(folder.parent))))
        self._contents: dict[str, bytes | str] = {}
        self._schemas: dict[str, str | None] = {}

    def fault(self, name: str) -> str | None:
        """Return what is wrong with the file ``name``, None if it can be used."""
        content = self._content(name)
        return content if isinstance(content, str) else None

    def schema_fault(self, name: str) -> str | None:
        """Return what is wrong with the file ``name`` as a JSON schema, None if it can be used."""
        if name not in self._schemas:
            content = self._content(name)
            self._schemas[name] = (
                content if isinstance(content, str) else _schema_fault(name, content)
            )
        return self._schemas[name]

    def schema(self, name: str) -> Any:
        """Return the JSON schema that the file ``name`` holds, None if it cannot be used."""
        content = self._content(name)
        if isinstance(content, str) or self.schema_fault(name):
            return None
        return json.loads(content)

    def text(self, name: str) -> str | None:
        """Return the text of the file ``name``, None if it cannot be used."""
        content = self._content(name)
        return None if isinstance(content, str) else content.decode()

    def template_exists(self, name: str) -> bool:
        """Return whether a template can name the file ``name``."""
        return bool(name) and ".." not in name.split("/") and "\0" not in name and self.exists(name)

    def beside(self, name: str) -> str:
        """Return the path of the file ``name``, relative to the definition's folder."""
        folder = self.folders[0]
        if os.path.isfile(f"{folder}/{name}"):  # noqa: PTH113
            return name
        return f"../{name}"

    def digest(self, name: str) -> str:
        """Return the SHA-256 of the file's content, hexadecimal; empty if it cannot be read."""
        content = self._content(name)
        return "" if isinstance(content, str) else hashlib.sha256(content).hexdigest()

    def exists(self, name: str) -> bool:
        """Return whether there is such a file, of whatever name."""
        return any(os.path.isfile(f"{folder}/{name}") for folder in self.folders)  # noqa: PTH113

    def _content(self, name: str) -> bytes | str:
        """Return the file's content, or what is wrong with it."""
        if name not in self._contents:
            self._contents[name] = self._read(name)
        return self._contents[name]

    def _read(self, name: str) -> bytes | str:
        if PurePosixPath(name).is_absolute() or ".." in name.split("/") or "\0" in name:
            return f"the path {show(name)} leads elsewhere; a path below the folder, without '..'"
        for folder in self.folders:
            path = f"{folder}/{name}"
            try:
                found = os.stat(path)  # noqa: PTH116 - half a definition's time, were it a Path
                # Opening a pipe would wait for its writer.
                if not S_ISREG(found.st_mode):
                    return f"{show(name)} is no plain file; name a file"
                if found.st_size > MAX_BYTES:
                    return f"the file {show(name)} is too big; at most {MAX_BYTES // 1024} KiB"
                with open(path, "rb") as file:  # noqa: PTH123
                    return _checked(name, file.read())
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                return f"the file {show(name)} cannot be read: {error.strerror}; make it readable"
        return self._missing(name)

    def _missing(self, name: str) -> str:
        near = get_close_matches(name, self._names_beside(name), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"looked in {' and '.join(self.folders)}"
        return f"there is no file {show(name)}; {hint}"

    def _names_beside(self, name: str) -> list[str]:
        subfolder = os.path.dirname(name)  # noqa: PTH120
        names: list[str] = []
        for folder in self.folders:
            try:
                beside = os.listdir(f"{folder}/{subfolder}")  # noqa: PTH208
            except OSError:
                continue
            names += [f"{subfolder}/{other}" if subfolder else other for other in beside]
        return names


def _checked(name: str, content: bytes) -> bytes | str:
    if not content.strip():
        return f"the file {show(name)} is empty; write it"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return f"the file {show(name)} is not UTF-8 at byte {error.start}; save it as UTF-8"
    return content


def schema_fault(schema: Any) -> tuple[tuple[str | int, ...], str] | None:
    """Return what is wrong with a JSON schema, and the way to it within the schema."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    if not isinstance(schema, dict):
        return (), f"it is {show(schema)}, not an object"
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        return tuple(error.path), one_line(error.message)
    except Exception as error:  # a `$schema` of any type is looked up unchecked
        return (), one_line(error) or type(error).__name__
    return None


def _schema_fault(name: str, content: bytes) -> str | None:
    try:
        schema = json.loads(content)
    except (ValueError, RecursionError) as error:
        return f"the schema file {show(name)} is not JSON: {one_line(error)}; mend it"
    fault = schema_fault(schema)
    if fault is None:
        return None
    way = "/".join(map(str, fault[0])) or "its root"
    return f"the schema file {show(name)} is no JSON schema at {way}: {fault[1]}; mend it"
