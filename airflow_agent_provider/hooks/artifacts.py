"""The artifact store: create-only artifacts, and small objects with compare-and-swap.

Two back ends, local files and S3, chosen by the ``[agents] artifacts`` URL.
"""

from __future__ import annotations

import hashlib
import mimetypes
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from airflow_agent_provider.agents.failures import InvalidDefinition

#: Names that begin so are a store's own.
RESERVED = ".agents-"
#: S3's limit, in bytes.
_MAX_KEY = 1024
_CONTENT_TYPES = {
    ".jsonl": "application/x-ndjson",
    ".md": "text/markdown; charset=utf-8",
    ".patch": "text/x-diff; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}


class ArtifactExists(Exception):
    """An artifact of this key exists already, with other content."""


class SwapConflict(Exception):
    """The object was changed by somebody else since it was read."""


@dataclass(frozen=True)
class Artifact:
    """A stored file.

    :param key: its key below the store's root.
    :param uri: where users find it, ``file://…`` or ``s3://…``.
    :param size: bytes.
    :param sha256: hexadecimal digest of its content.
    """

    key: str
    uri: str
    size: int
    sha256: str


class ArtifactStore(ABC):
    """Artifacts below one root.

    :param root: the URL of the store.
    """

    root: str

    @abstractmethod
    def uri(self, key: str) -> str:
        """Return the URI of ``key``, whether or not it exists."""

    @abstractmethod
    def key(self, uri: str) -> str:
        """Return the key of one of this store's URIs; ValueError for any other URI."""

    @abstractmethod
    def put(self, key: str, content: bytes | Path, *, content_type: str = "") -> Artifact:
        """Store an artifact, atomically and only once.

        :param content: the bytes, or the file to store.
        :param content_type: MIME type; guessed from the key where empty.
        :raises ArtifactExists: if the key holds other content; the same content is no error.
        """

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return an artifact's bytes; FileNotFoundError if there is none."""

    @abstractmethod
    def fetch(self, key: str, to: Path) -> None:
        """Write an artifact to the file ``to``; FileNotFoundError if there is none."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether there is an artifact or object of this key."""

    @abstractmethod
    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below the folder ``prefix``, sorted."""

    @abstractmethod
    def read(self, key: str) -> tuple[bytes, str] | None:
        """Return an object's bytes and its version, None if there is none."""

    @abstractmethod
    def swap(self, key: str, content: bytes, version: str | None) -> str:
        """Replace an object that still has ``version`` (None: that does not exist yet).

        :returns: the new version.
        :raises SwapConflict: if the object is of another version by now.
        """


def open_store(url: str, aws_conn_id: str = "aws_default") -> ArtifactStore:
    """Return the store at ``url``.

    :param url: ``file://…`` or ``s3://bucket/prefix``.
    :param aws_conn_id: connection for S3.
    :raises InvalidDefinition: if the URL is of another kind.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        from airflow_agent_provider.hooks.artifacts_local import LocalArtifactStore

        return LocalArtifactStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from airflow_agent_provider.hooks.artifacts_s3 import S3ArtifactStore

        return S3ArtifactStore(parts.netloc, parts.path, aws_conn_id)
    raise InvalidDefinition(
        f"artifacts cannot be stored at {url!r}; [agents] artifacts takes file:///folder or "
        f"s3://bucket/prefix"
    )


def check_key(key: str) -> str:
    """Return ``key`` if it names a place below a store's root; ValueError if it does not."""
    parts = key.split("/")
    unsafe = any(part in ("", ".", "..") or part.startswith(RESERVED) for part in parts)
    if unsafe or not key.isprintable() or len(key.encode()) > _MAX_KEY:
        raise ValueError(f"{key!r} is no key of an artifact")
    return key


def check_prefix(prefix: str) -> str:
    """Return the folder ``prefix`` with a slash at its end; empty for the root."""
    folder = prefix.rstrip("/")
    return f"{check_key(folder)}/" if folder else ""


def content_type_of(key: str) -> str:
    """Return the MIME type that the ending of ``key`` stands for."""
    suffix = PurePosixPath(key).suffix
    return _CONTENT_TYPES.get(suffix) or mimetypes.guess_type(key)[0] or "application/octet-stream"


def digest_of(content: bytes | Path) -> tuple[str, int]:
    """Return the SHA-256 of bytes or of a file, in hexadecimal, and the size in bytes."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest(), len(content)
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()
