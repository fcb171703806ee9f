"""Writes the mirror's hints beside the process that gives them, which never waits for DynamoDB."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

Job = Callable[[], object]


class Writer:
    """One thread that does jobs in their order; it is started by the first one.

    Jobs may be lost (a full queue, the process's end, a table that does not answer): they are
    hints, and the reconcile repairs what they leave out.

    :param limit: how many jobs may wait; more are dropped.
    """

    def __init__(self, limit: int = 1000) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._dropped = 0
        self._reset()
        # A forked child (LocalExecutor forks from the scheduler) has no such thread.
        os.register_at_fork(after_in_child=self._reset)

    def submit(self, job: Job) -> threading.Event:
        """Let the thread do ``job``; return what is set once it is done or dropped."""
        done = threading.Event()
        try:
            self._jobs.put_nowait((job, done))
        except queue.Full:
            self._drop()
            done.set()
            return done
        self._start()
        return done

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.Queue[tuple[Job, threading.Event]] = queue.Queue(self._limit)
        self._thread: threading.Thread | None = None

    def _start(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                # A daemon, since a process must not wait for DynamoDB at its end either.
                self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            job, done = self._jobs.get()
            try:
                job()
            except Exception as error:
                # Whatever fails here costs a hint, never a step; the reconcile repairs it.
                log.warning("The mirror missed a change, which the reconcile repairs: %s", error)
            finally:
                done.set()

    def _drop(self) -> None:
        self._dropped += 1
        if self._dropped == 1 or self._dropped % 100 == 0:
            log.warning(
                "The mirror has dropped %d change(s), since its table does not keep up; "
                "the reconcile repairs them",
                self._dropped,
            )
