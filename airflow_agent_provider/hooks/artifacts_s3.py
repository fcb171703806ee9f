"""The artifact store in S3, by conditional writes.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html: ``If-None-Match: *``
makes an object only once, ``If-Match`` replaces the one that was read. A failed condition is
answered 412; 409 where another conditional write was under way, and 404 where the object is gone.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from airflow_agent_provider.agents.failures import (
    AuthenticationFailed,
    InvalidDefinition,
    Unavailable,
)
from airflow_agent_provider.hooks.artifacts import (
    Artifact,
    ArtifactExists,
    ArtifactStore,
    SwapConflict,
    check_key,
    check_prefix,
    content_type_of,
    digest_of,
)
from airflow_agent_provider.hooks.aws import aws_client

_SHA256 = "sha256"
_WRITE = "write"
_CONNECT_TIMEOUT = 10
_READ_TIMEOUT = 60
_ATTEMPTS = 5
_PAUSE = 0.1

_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})
_PRECONDITION = frozenset({"PreconditionFailed", "412"})
_UNDER_WAY = frozenset({"ConditionalRequestConflict", "409", "OperationAborted"})
_REFUSED = frozenset(
    {
        "AccessDenied",
        "403",
        "Forbidden",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
    }
)


class S3ArtifactStore(ArtifactStore):
    """Artifacts as objects of a bucket, by the amazon provider's connection.

    Thread-safe once its client exists, that is after the first call.

    :param bucket: the bucket, which must exist.
    :param prefix: path below the bucket.
    :param aws_conn_id: connection for S3.
    """

    def __init__(self, bucket: str, prefix: str = "", aws_conn_id: str = "aws_default") -> None:
        self._bucket = bucket
        path = prefix.strip("/")
        self._prefix = f"{path}/" if path else ""
        self._conn_id = aws_conn_id
        self.root = f"s3://{bucket}/{self._prefix}".rstrip("/")

    @cached_property
    def _client(self) -> Any:
        from botocore.config import Config

        ours = Config(
            connect_timeout=_CONNECT_TIMEOUT,
            read_timeout=_READ_TIMEOUT,
            retries={"mode": "standard", "max_attempts": _ATTEMPTS},
        )
        return aws_client("s3", self._conn_id, ours)

    def uri(self, key: str) -> str:
        """Return the ``s3://`` URI of ``key``."""
        return f"s3://{self._bucket}/{self._prefix}{check_key(key)}"

    def key(self, uri: str) -> str:
        """Return the key of one of this store's URIs."""
        root = f"s3://{self._bucket}/{self._prefix}"
        if not uri.startswith(root):
            raise ValueError(f"{uri!r} is not in the artifact store {self.root}")
        return check_key(uri.removeprefix(root))

    def put(self, key: str, content: bytes | Path, *, content_type: str = "") -> Artifact:
        """Store an artifact of at most 5 GB; see :meth:`ArtifactStore.put`."""
        uri = self.uri(key)
        sha256, size = digest_of(content)
        for attempt in range(_ATTEMPTS):
            code = self._put_once(key, content, sha256, content_type)
            if code is None or (code in _PRECONDITION and self._digest(key) == sha256):
                return Artifact(key, uri, size, sha256)
            if code in _PRECONDITION:
                raise ArtifactExists(f"{uri} exists with other content")
            time.sleep(_PAUSE * 2**attempt)
        raise Unavailable(f"{uri} is being written by others all the time")

    def get(self, key: str) -> bytes:
        """Return an artifact's bytes."""
        found = self.read(key)
        if found is None:
            raise FileNotFoundError(f"there is no artifact {self.uri(key)}")
        return found[0]

    def fetch(self, key: str, to: Path) -> None:
        """Download an artifact to the file ``to``, whole or not at all."""
        part = to.with_name(f".{to.name}.{uuid.uuid4().hex}")
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._errors(key):
                self._client.download_file(self._bucket, self._name(key), str(part))
            part.replace(to)
        except _Absent:
            raise FileNotFoundError(f"there is no artifact {self.uri(key)}") from None
        finally:
            part.unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        """Return whether there is an object of this key."""
        return self._head(key) is not None

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below the folder ``prefix``, sorted, as S3 lists them."""
        folder = f"{self._prefix}{check_prefix(prefix)}"
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=folder
        )
        with self._errors(prefix):
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield entry["Key"].removeprefix(self._prefix)

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Return an object's bytes and its version, the ETag."""
        try:
            with self._errors(key):
                answer = self._client.get_object(Bucket=self._bucket, Key=self._name(key))
                return answer["Body"].read(), answer["ETag"]
        except _Absent:
            return None

    def swap(self, key: str, content: bytes, version: str | None) -> str:
        """Replace an object of this version; see :meth:`ArtifactStore.swap`."""
        write = uuid.uuid4().hex
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            with self._errors(key):
                answer = self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._name(key),
                    Body=content,
                    ContentType=content_type_of(key),
                    Metadata={_WRITE: write},
                    **condition,
                )
            etag: str = answer["ETag"]
            return etag
        except (_Absent, _Conflict):
            # The client repeats a write whose answer was lost, and meets its own write then.
            found = self._head(key)
            if found and found["Metadata"].get(_WRITE) == write:
                return str(found["ETag"])
            raise SwapConflict(f"{self.uri(key)} was changed by somebody else") from None

    def _name(self, key: str) -> str:
        return f"{self._prefix}{check_key(key)}"

    def _put_once(
        self, key: str, content: bytes | Path, sha256: str, content_type: str
    ) -> str | None:
        """Create the object; return the error's code if it exists or is being made."""
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._errors(key))
                body: Any = content
                if isinstance(content, Path):
                    body = stack.enter_context(content.open("rb"))
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._name(key),
                    Body=body,
                    ContentType=content_type or content_type_of(key),
                    Metadata={_SHA256: sha256},
                    IfNoneMatch="*",
                )
        except _Conflict as conflict:
            return conflict.code
        return None

    def _digest(self, key: str) -> str:
        found = self._head(key)
        if found and (sha256 := found["Metadata"].get(_SHA256)):
            return str(sha256)
        return digest_of(self.get(key))[0] if found else ""

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            with self._errors(key):
                answer: dict[str, Any] = self._client.head_object(
                    Bucket=self._bucket, Key=self._name(key)
                )
                return answer
        except _Absent:
            return None

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn botocore's errors into failures that say what to do."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            PartialCredentialsError,
        )

        where = f"s3://{self._bucket}/{self._prefix}{key}"
        try:
            yield
        except ClientError as error:
            raise self._meaning(error, where) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise AuthenticationFailed(
                f"{where}: no AWS credentials; give them in the connection {self._conn_id!r} or to "
                f"the worker: {error}"
            ) from error
        except BotoCoreError as error:
            raise Unavailable(f"{where}: S3 cannot be reached: {error}", raw=str(error)) from error

    def _meaning(self, error: Any, where: str) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _ABSENT:
            return _Absent(where)
        if code in _PRECONDITION | _UNDER_WAY:
            return _Conflict(code)
        if code == "NoSuchBucket":
            return InvalidDefinition(
                f"the bucket {self._bucket!r} of [agents] artifacts does not exist; create it, or "
                f"name another",
                raw=str(error),
            )
        if code in _REFUSED:
            return AuthenticationFailed(
                f"{where}: S3 refuses the connection {self._conn_id!r}, which needs s3:GetObject, "
                f"s3:PutObject and s3:ListBucket there: {error}",
                raw=str(error),
            )
        return Unavailable(f"{where}: S3 cannot serve: {error}", raw=str(error))


class _Absent(Exception):
    """There is no such object."""


class _Conflict(Exception):
    """The condition of a write does not hold.

    :param code: S3's error code.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
