"""The transcript: an agent's events as JSON lines, stored in segments while it works."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_agent_provider.agents.contract import AgentEvent, EventKind

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

#: A segment is stored when it has this many events or its first one is this many seconds old.
SEGMENT_EVENTS = 200
SEGMENT_SECONDS = 5.0

_SHOWN = 500


class Transcript:
    """Collects events and stores them in segments, so that they can be watched.

    :param store: stores the bytes of the segment of this number, from 1.
    :param redact: takes secrets out of a text.
    :param log: the task's log, where each event is one line.
    """

    def __init__(
        self,
        store: Callable[[int, bytes], None],
        redact: Callable[[str], str],
        log: Logger,
    ) -> None:
        self._store = store
        self._redact = redact
        self._log = log
        self._lines: list[str] = []
        self._first = 0.0
        self.segments = 0

    def add(self, event: AgentEvent) -> None:
        """Log ``event`` and keep it; store the segment if it is full or old."""
        self._show(event)
        if not self._lines:
            self._first = time.monotonic()
        values = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event.to_dict()}
        self._lines.append(json.dumps(values, ensure_ascii=False))
        if len(self._lines) >= SEGMENT_EVENTS or time.monotonic() - self._first >= SEGMENT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Store what is not stored yet."""
        if not self._lines:
            return
        content = self._redact("\n".join(self._lines) + "\n")
        self._store(self.segments + 1, content.encode())
        self.segments += 1
        self._lines = []

    def _show(self, event: AgentEvent) -> None:
        if event.kind in (EventKind.USAGE, EventKind.THOUGHT) or not event.text.strip():
            return
        status = f" [{event.status.value}]" if event.status else ""
        tool = f" {event.tool.value}" if event.tool else ""
        self._log.info("%s%s%s: %s", event.kind.value, tool, status, event.text.strip()[:_SHOWN])
