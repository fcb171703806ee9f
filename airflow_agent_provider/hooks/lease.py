"""The lease of a step: one attempt at a time works in it.

An attempt can outlive its retry: Airflow may take a worker for dead whose task process lives on.
So an attempt enters workspace and session only with the step's lease, a compare-and-swap object in
the artifact store, and checks it before every write that matters.

A newer attempt announces itself in the object at once, and from then on the older one cannot renew.
It then waits until the older one has released the lease or let it expire. Workers' clocks differ,
so nobody compares times of others: a lease has expired when whoever waits for it has seen the same
version for its whole time to live on their own monotonic clock. The holder counts from before its
last write, so it knows no later than anyone else that its lease is over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from airflow_agent_provider.agents.failures import Interrupted, Superseded
from airflow_agent_provider.agents.identity import AttemptKey
from airflow_agent_provider.hooks.artifacts import ArtifactStore, SwapConflict

log = logging.getLogger(__name__)

_ORPHAN_CHECK = 1.0
_MAX_POLL = 1.0
_RENEWALS_PER_TTL = 6


@dataclass(frozen=True)
class LeaseState:
    """What stands in the lease's object.

    :param attempt: number of the attempt that holds, or held, the lease.
    :param owner: the process that does.
    :param newest: the greatest attempt number that has asked for the lease.
    :param released: whether it was given back.
    :param expires: seconds since the epoch, for people who look; nobody judges by it.
    :param write: different in every write, so that no two versions are alike.
    """

    attempt: int
    owner: str
    newest: int
    released: bool = False
    expires: float = 0.0
    write: str = ""

    @classmethod
    def from_json(cls, content: bytes) -> LeaseState:
        """Return the state that ``content`` holds; fields of newer releases are ignored."""
        values: dict[str, Any] = json.loads(content)
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})

    def to_json(self) -> bytes:
        """Return the state as the object's content."""
        return json.dumps(asdict(self)).encode()


class Lease:
    """At most one attempt of a step works at a time; an older attempt's writes are refused.

    :param store: the artifact store.
    :param attempt: the attempt that wants the step.
    :param owner: this process, for people who look; two leases are never the same owner.
    :param ttl: seconds without renewal after which the lease is over.
    :param clock: seconds of a clock that never goes back.
    :param sleep: waits for so many seconds.
    """

    def __init__(
        self,
        store: ArtifactStore,
        attempt: AttemptKey,
        *,
        owner: str,
        ttl: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.key = f"{attempt.step.prefix}/lease.json"
        self._store = store
        self._attempt = attempt
        self._owner = f"{owner}/{uuid.uuid4().hex[:8]}"
        self._ttl = ttl
        self._clock = clock
        self._sleep = sleep
        self._parent = os.getppid()
        self._lock = threading.RLock()
        self._version: str | None = None
        self._renewed = 0.0
        self._lost: Interrupted | None = None
        #: The version of another's lease that was seen, and since when.
        self._seen: tuple[str, float] | None = None

    @property
    def held(self) -> bool:
        """Whether this process has the lease, as far as it can know without asking the store."""
        with self._lock:
            alive = self._clock() - self._renewed < self._ttl
            return self._version is not None and self._lost is None and alive

    def acquire(self, wait: float) -> None:
        """Get the lease, waiting until an older attempt has released it or let it expire.

        :param wait: seconds to wait; more than the time to live outwaits any older attempt.
        :raises Superseded: if a newer attempt has asked for the step.
        :raises Interrupted: if the lease is still held after ``wait`` seconds.
        """
        deadline = self._clock() + wait
        while True:
            holder = self._try_acquire()
            if holder is None:
                return
            left = deadline - self._clock()
            if left <= 0:
                raise Interrupted(
                    f"attempt {holder.attempt} of {self._name} still works, in {holder.owner}; "
                    f"waited {wait:g} s for it to end"
                )
            self._sleep(min(left, _MAX_POLL, self._ttl / 20))

    def renew(self) -> None:
        """Prolong the lease by its time to live.

        :raises Superseded: if a newer attempt has asked for the step, or another process has it.
        """
        with self._lock:
            if self._lost is not None:
                raise self._lost
            if self._version is None:
                raise RuntimeError(f"{self.key}: renewed without being held")
            try:
                self._write(self._version, self._mine())
            except SwapConflict:
                self._renew_again()

    def check(self) -> None:
        """Make sure, in the store, that this attempt has the step; call before writes that matter.

        :raises Interrupted: if it does not, or its supervisor is gone.
        """
        if os.getppid() != self._parent:
            self._lose(_orphaned(self._name))
        self.renew()

    def release(self) -> None:
        """Give the lease back; harmless if it is not held (any more)."""
        with self._lock:
            version, self._version = self._version, None
            while version is not None:
                state, version = self._read()
                if state is None or not self._is_mine(state) or state.released:
                    return
                with contextlib.suppress(SwapConflict):
                    self._put(version, replace(state, released=True))
                    return

    @contextlib.contextmanager
    def keep(self, on_lost: Callable[[Interrupted], None]) -> Iterator[None]:
        """Renew the lease from a thread while inside the context.

        Every second the thread also looks whether this process's supervisor lives. The store's
        client must have been used before, in the thread that enters.

        :param on_lost: called at most once, from the thread, when a newer attempt has the step,
            when no renewal worked for the time to live, or when the supervisor is gone. From then
            on :meth:`check` raises what it was called with.
        """
        stop = threading.Event()
        thread = threading.Thread(
            target=self._keep, args=(stop, on_lost), name="agents-lease", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            # A renewal under way ends by the store's own time limits; it is harmless then.
            thread.join(self._ttl / _RENEWALS_PER_TTL)

    @property
    def _name(self) -> str:
        step = self._attempt.step
        return f"step {step.step_id!r} of run {step.run_id!r}"

    def _keep(self, stop: threading.Event, on_lost: Callable[[Interrupted], None]) -> None:
        pause = self._ttl / _RENEWALS_PER_TTL
        due = self._clock() + pause
        while not stop.wait(min(_ORPHAN_CHECK, pause)):
            try:
                if os.getppid() != self._parent:
                    raise _orphaned(self._name)
                if self._clock() >= due:
                    due = self._clock() + pause
                    self._renew_or_run_out()
            except Interrupted as lost:
                self._lose(lost)
                if not stop.is_set():
                    on_lost(lost)
                return

    def _renew_or_run_out(self) -> None:
        try:
            self.renew()
        except Interrupted:
            raise
        except Exception as error:
            silent = self._clock() - self._renewed
            log.warning("The lease %s was not renewed: %s", self.key, error)
            if silent >= self._ttl:
                raise Interrupted(
                    f"the lease of {self._name} could not be renewed for {silent:.0f} s: {error}"
                ) from error

    def _lose(self, lost: Interrupted) -> None:
        with self._lock:
            self._lost = self._lost or lost

    def _try_acquire(self) -> LeaseState | None:
        """Take the lease if it can be taken; else return who has it, having announced ourselves."""
        with self._lock:
            state, version = self._read()
            if state is not None:
                self._refuse_if_superseded(state)
            try:
                if state is None or version is None:
                    self._write(None, self._mine())
                    return None
                if self._is_mine(state) or state.released or self._has_expired(version):
                    self._write(version, self._mine())
                    return None
                if state.newest < self._attempt.number:
                    self._announce(version, state)
                return state
            except SwapConflict:
                # Somebody was faster; the next look tells who.
                return state or LeaseState(0, "another process", 0)

    def _announce(self, version: str, state: LeaseState) -> None:
        announced = self._put(version, replace(state, newest=self._attempt.number))
        # Our own write is no sign of life of the holder's.
        if self._seen is not None:
            self._seen = (announced, self._seen[1])

    def _has_expired(self, version: str) -> bool:
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, self._clock())
        return self._clock() - self._seen[1] >= self._ttl

    def _refuse_if_superseded(self, state: LeaseState) -> None:
        if state.newest > self._attempt.number:
            raise Superseded(
                f"attempt {state.newest} of {self._name} has taken over from attempt "
                f"{self._attempt.number}"
            )

    def _renew_again(self) -> None:
        """After a conflict: our own write whose answer was lost, or the end of the lease."""
        state, version = self._read()
        lost = Superseded(f"the lease of {self._name} is gone")
        if state is not None:
            try:
                self._refuse_if_superseded(state)
                if self._is_mine(state) and not state.released and version is not None:
                    self._write(version, self._mine())
                    return
                lost = Superseded(
                    f"attempt {state.attempt} of {self._name} is at work in {state.owner}"
                )
            except Superseded as newer:
                lost = newer
            except SwapConflict:
                lost = Superseded(f"the lease of {self._name} was taken by another process")
        self._lose(lost)
        raise lost

    def _is_mine(self, state: LeaseState) -> bool:
        return (state.attempt, state.owner) == (self._attempt.number, self._owner)

    def _mine(self) -> LeaseState:
        return LeaseState(self._attempt.number, self._owner, newest=self._attempt.number)

    def _read(self) -> tuple[LeaseState | None, str | None]:
        found = self._store.read(self.key)
        if found is None:
            return None, None
        return LeaseState.from_json(found[0]), found[1]

    def _write(self, version: str | None, state: LeaseState) -> None:
        before = self._clock()
        self._version = self._put(version, state)
        self._renewed = before
        self._lost = None

    def _put(self, version: str | None, state: LeaseState) -> str:
        fresh = replace(state, expires=time.time() + self._ttl, write=uuid.uuid4().hex)
        return self._store.swap(self.key, fresh.to_json(), version)


def _orphaned(name: str) -> Interrupted:
    return Interrupted(f"the supervisor of this attempt of {name} is gone, so the attempt ends")
