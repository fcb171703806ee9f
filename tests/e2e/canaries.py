"""Secrets that are planted where a worker has some, and the search for them in what is stored."""

from __future__ import annotations

import base64
import codecs
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: How each planted secret begins; hexadecimal digits follow.
PREFIX = "cnry"


def make_canary() -> str:
    """Return a new secret."""
    return PREFIX + secrets.token_hex(20)


@dataclass(frozen=True)
class Canaries:
    """The planted secrets.

    :param values: the secret by where it was planted.
    """

    values: dict[str, str]

    def found_in(self, content: bytes) -> list[str]:
        """Return where those were planted that stand in ``content``, in any simple form."""
        return [
            f"{place} ({form})"
            for place, value in self.values.items()
            for form, shape in _shapes(value)
            if shape in content
        ]

    def report(self, contents: Iterable[tuple[str, bytes]]) -> list[str]:
        """Return one line per find.

        :param contents: what is searched: its name and bytes.
        """
        return [f"{name}: {find}" for name, content in contents for find in self.found_in(content)]


def _shapes(value: str) -> Iterator[tuple[str, bytes]]:
    raw = value.encode()
    yield "plain", raw
    yield "reversed", raw[::-1]
    yield "hexadecimal", raw.hex().encode()
    yield "rot13", codecs.encode(value, "rot13").encode()
    for offset in range(3):
        # The digits that do not depend on what stands beside the secret.
        encoded = base64.b64encode(b"x" * offset + raw)
        yield f"base64+{offset}", encoded[4 if offset else 0 : -4]


def plant(folder: Path) -> Canaries:
    """Plant secrets in this process's environment and a new home folder; return them.

    Whoever calls restores the environment.

    :param folder: where the home is made.
    """
    values = {}
    home = folder / "user-home"
    for place in (".aws/credentials", ".netrc", ".ssh/id_ed25519", ".config/gh/hosts.yml", ".env"):
        file = home / place
        file.parent.mkdir(parents=True, exist_ok=True)
        values[f"home: {place}"] = secret = make_canary()
        head = "[default]\n" if place == ".aws/credentials" else ""
        file.write_text(f"{head}token = {secret}\n")
    os.environ["HOME"] = str(home)
    for name in ("DEPLOY_TOKEN", "DATABASE_PASSWORD", "GITHUB_TOKEN", "PLAIN_NAME", "LC_CANARY"):
        values[f"environment: {name}"] = os.environ[name] = make_canary()
    return Canaries(values)


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the regular files below a folder, with their content; links are not followed."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(folder)), path.read_bytes()
