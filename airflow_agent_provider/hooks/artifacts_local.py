"""The artifact store in local files: for one machine, or a file system that all workers share."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from airflow_agent_provider.hooks.artifacts import (
    RESERVED,
    Artifact,
    ArtifactExists,
    ArtifactStore,
    SwapConflict,
    check_key,
    check_prefix,
    digest_of,
)

_LOCKS = f"{RESERVED}locks"


class LocalArtifactStore(ArtifactStore):
    """Artifacts as files below a folder. Every file is whole: readers never see one in the making.

    The file system needs hard links and ``flock``, as local ones and NFS have them.

    :param folder: the root; made when the first artifact is stored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = folder.as_uri()

    def uri(self, key: str) -> str:
        """Return the ``file://`` URI of ``key``."""
        return self._path(key).as_uri()

    def key(self, uri: str) -> str:
        """Return the key of one of this store's URIs."""
        parts = urlsplit(uri)
        path = Path(unquote(parts.path))
        if parts.scheme != "file" or not path.is_relative_to(self._folder):
            raise ValueError(f"{uri!r} is not in the artifact store {self.root}")
        return check_key(path.relative_to(self._folder).as_posix())

    def put(self, key: str, content: bytes | Path, *, content_type: str = "") -> Artifact:
        """Store an artifact; see :meth:`ArtifactStore.put`. Files keep no content type."""
        path = self._path(key)
        with self._temporary(path) as temporary:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                shutil.copyfile(content, temporary)
            _sync(temporary)
            sha256, size = digest_of(temporary)
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                if digest_of(path)[0] != sha256:
                    raise ArtifactExists(f"{self.uri(key)} exists with other content") from None
            else:
                _sync(path.parent)
        return Artifact(key, self.uri(key), size, sha256)

    def get(self, key: str) -> bytes:
        """Return an artifact's bytes."""
        return self._path(key).read_bytes()

    def fetch(self, key: str, to: Path) -> None:
        """Copy an artifact to the file ``to``, whole or not at all."""
        source = self._path(key)
        if not source.is_file():
            raise FileNotFoundError(f"there is no artifact {self.uri(key)}")
        with self._temporary(to) as temporary:
            shutil.copyfile(source, temporary)
            temporary.replace(to)

    def exists(self, key: str) -> bool:
        """Return whether there is a file of this key."""
        return self._path(key).is_file()

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below the folder ``prefix``, sorted."""
        found = []
        for folder, folders, files in os.walk(self._folder / check_prefix(prefix)):
            folders[:] = [name for name in folders if not name.startswith(RESERVED)]
            below = Path(folder).relative_to(self._folder)
            found += [(below / name).as_posix() for name in files if not name.startswith(RESERVED)]
        yield from sorted(found)

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Return an object's bytes and its version, the SHA-256 of its bytes."""
        try:
            content = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        return content, hashlib.sha256(content).hexdigest()

    def swap(self, key: str, content: bytes, version: str | None) -> str:
        """Replace an object of this version; see :meth:`ArtifactStore.swap`."""
        path = self._path(key)
        with self._locked(key), self._temporary(path) as temporary:
            found = self.read(key)
            if (found and found[1]) != version:
                raise SwapConflict(f"{self.uri(key)} was changed by somebody else")
            temporary.write_bytes(content)
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        return hashlib.sha256(content).hexdigest()

    def _path(self, key: str) -> Path:
        return self._folder / check_key(key)

    @contextlib.contextmanager
    def _temporary(self, beside: Path) -> Iterator[Path]:
        beside.parent.mkdir(parents=True, exist_ok=True)
        path = beside.with_name(f"{RESERVED}{uuid.uuid4().hex}")
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        # A lock file cannot be removed safely, so a fixed number of them serves all keys.
        name = hashlib.sha256(key.encode()).hexdigest()[:2]
        locks = self._folder / _LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / name).open("ab") as file:
            # Held for milliseconds, and freed by the kernel if the holder dies.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
