"""The artifact store: create-only artifacts, and small objects with compare-and-swap.

Two back ends, local files and S3, chosen by the ``[agents] artifacts`` URL.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


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
    """
    raise NotImplementedError
