"""What an attempt stores: its artifacts, without the secrets that Airflow knows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from airflow.sdk._shared.secrets_masker import redact as _redact

from airflow_agent_provider.agents.failures import OutputInvalid, PolicyViolation
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.hooks.artifacts import ArtifactStore
from airflow_agent_provider.workspace.output import read_beneath

#: Artifacts that are many; they are found in the attempt's folder, and not named in XCom.
_MANY = ("transcript/", "checkpoints/")
#: Bytes that one file of a session may have.
_SESSION_SIZE = 512 * 1024**2


def redact(text: str) -> str:
    """Return ``text`` without the secrets that Airflow knows: those of connections it read."""
    return str(_redact(text))


def redact_values(value: Any) -> Any:
    """Return JSON values without the secrets that Airflow knows.

    Airflow's own redaction of mappings also hides what merely stands under a name like ``token``,
    and the output of a step may well have such names.
    """
    return json.loads(redact(json.dumps(value)))


def attempt_key(ti: Any) -> AttemptKey:
    """Return who an attempt is, from Airflow's task instance."""
    map_index = -1 if ti.map_index is None else ti.map_index
    return AttemptKey(StepKey(ti.dag_id, ti.run_id, ti.task_id, map_index), ti.try_number)


class Record:
    """The artifacts of one attempt.

    :param store: the artifact store.
    :param key: the attempt.
    """

    def __init__(self, store: ArtifactStore, key: AttemptKey) -> None:
        self._store = store
        self._prefix = key.prefix
        #: URIs by name, without the session's files.
        self.artifacts: dict[str, str] = {}

    @property
    def main_artifacts(self) -> dict[str, str]:
        """The artifacts that XCom names, which has to stay small."""
        return {name: uri for name, uri in self.artifacts.items() if not name.startswith(_MANY)}

    def put_text(self, name: str, text: str) -> str:
        """Store a text, redacted; return its URI."""
        return self.put(name, redact(text).encode())

    def put(self, name: str, content: bytes | Path) -> str:
        """Store bytes or a file as they are; return the URI."""
        artifact = self._store.put(f"{self._prefix}/{name}", content)
        self.artifacts[name] = artifact.uri
        return artifact.uri

    def put_session(self, files: Mapping[str, bytes], folder: str) -> dict[str, str]:
        """Store a session's portable files; return their URIs by their paths.

        :param files: what they hold, as :func:`read_session` read it.
        :param folder: where in the attempt's folder, with a slash at its end.
        """
        return {
            path: self._store.put(f"{self._prefix}/{folder}{path}", content).uri
            for path, content in files.items()
        }


def read_session(files: Mapping[str, Path]) -> dict[str, bytes]:
    """Return what a session's portable files hold, by their path below the session's home.

    :param files: the files, by that path.
    :raises PolicyViolation: if they hold a secret, or are no files, as an agent may leave them.
    """
    contents = {}
    for path, file in files.items():
        if not os.path.lexists(file):
            continue  # Gone since it was listed.
        try:
            content = read_beneath(
                _home(path, file), path, _SESSION_SIZE, what="session file", empty=True
            )
        except OutputInvalid as error:
            raise PolicyViolation(f"the session cannot be kept: {error.reason}") from error
        refuse_secrets(content, "the agent's session")
        contents[path] = content
    return contents


def _home(path: str, file: Path) -> Path:
    """Return the folder below which ``file`` has this path."""
    return file.parents[len(PurePosixPath(path).parts) - 1]


def refuse_secrets(content: bytes, what: str) -> None:
    """Refuse what cannot be redacted without breaking it, if it holds a secret.

    :param content: the bytes.
    :param what: names them in the error.
    :raises PolicyViolation: if they hold a secret that Airflow knows.
    """
    text = content.decode(errors="replace")
    if redact(text) != text:
        raise PolicyViolation(
            f"{what} holds a secret that Airflow knows, so it is not stored; change the secret, "
            "and find out how the agent came by it"
        )
