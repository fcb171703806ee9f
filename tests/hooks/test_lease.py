from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from airflow_agent_provider.agents.failures import (
    FAILURE_CLASSES,
    Interrupted,
    Superseded,
    failure_from_dict,
    failure_to_dict,
)
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.hooks.artifacts import Artifact, ArtifactStore, SwapConflict
from airflow_agent_provider.hooks.artifacts_local import LocalArtifactStore
from airflow_agent_provider.hooks.lease import Lease

STEP = StepKey("demo", "run 1", "plan")
TTL = 60.0


class StoreDown(Exception):
    """The store cannot be reached."""


class Objects(ArtifactStore):
    """A store of objects in memory, whose troubles and whose rivals can be told beforehand."""

    root = "memory:"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        #: What the next swap meets: nothing, no answer, or an answer lost after the write.
        self.trouble = ""
        #: What another process does between the next read and what follows from it.
        self.meanwhile: Callable[[], None] | None = None

    def read(self, key: str) -> tuple[bytes, str] | None:
        if self.trouble == "down":
            raise StoreDown
        content = self.objects.get(key)
        found = None if content is None else (content, hashlib.sha256(content).hexdigest())
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        return found

    def swap(self, key: str, content: bytes, version: str | None) -> str:
        if self.trouble == "down":
            raise StoreDown
        now = self.objects.get(key)
        if (None if now is None else hashlib.sha256(now).hexdigest()) != version:
            raise SwapConflict
        self.objects[key] = content
        if self.trouble == "lost answer":
            raise StoreDown
        return hashlib.sha256(content).hexdigest()

    def uri(self, key: str) -> str:
        raise NotImplementedError

    def key(self, uri: str) -> str:
        raise NotImplementedError

    def put(self, key: str, content: bytes | Path, *, content_type: str = "") -> Artifact:
        raise NotImplementedError

    def get(self, key: str) -> bytes:
        raise NotImplementedError

    def fetch(self, key: str, to: Path) -> None:
        raise NotImplementedError

    def exists(self, key: str) -> bool:
        raise NotImplementedError

    def keys(self, prefix: str) -> Iterator[str]:
        raise NotImplementedError


class Clock:
    """A clock that goes on only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> Objects:
    return Objects()


@pytest.fixture
def lease(store: Objects, clock: Clock) -> Callable[..., Lease]:
    def make(number: int = 1, owner: str = "worker", skew: float = 0.0) -> Lease:
        return Lease(
            store,
            AttemptKey(STEP, number),
            owner=owner,
            ttl=TTL,
            clock=lambda: clock() + skew,
            sleep=clock.sleep,
        )

    return make


Make = Callable[..., Lease]


def state_of(store: ArtifactStore) -> dict[str, object]:
    found = store.read(f"{STEP.prefix}/lease.json")
    assert found is not None
    values: dict[str, object] = json.loads(found[0])
    return values


def test_the_first_gets_it_at_once(lease: Make, store: Objects, clock: Clock) -> None:
    mine = lease(owner="host-1:4711")
    mine.acquire(0)
    assert mine.held
    assert clock.now == 1000.0
    state = state_of(store)
    assert (state["attempt"], state["newest"], state["released"]) == (1, 1, False)
    assert str(state["owner"]).startswith("host-1:4711/")


def test_released_it_goes_on_at_once(lease: Make, clock: Clock) -> None:
    first, second = lease(1), lease(2)
    first.acquire(0)
    first.release()
    first.release()
    assert not first.held
    second.acquire(0)
    assert second.held
    assert clock.now == 1000.0
    first.release()
    second.check()


def test_a_dead_attempt_is_outwaited(lease: Make, clock: Clock) -> None:
    lease(1).acquire(0)
    second = lease(2)
    second.acquire(2 * TTL)
    assert 1000.0 + TTL <= clock.now <= 1000.0 + TTL + 2
    assert second.held


def test_a_living_holder_is_never_outwaited(lease: Make, clock: Clock) -> None:
    one, other = lease(1), lease(1)
    one.acquire(0)
    for _ in range(5):
        with pytest.raises(Interrupted, match="still works"):
            other.acquire(0)
        clock.now += TTL - 1
        one.renew()
    with pytest.raises(Interrupted):
        other.acquire(TTL - 0.1)
    assert not other.held


def test_nobody_takes_it_a_moment_too_early(lease: Make, clock: Clock) -> None:
    first, second = lease(1), lease(2)
    first.acquire(0)
    with pytest.raises(Interrupted):
        second.acquire(0)
    clock.now += TTL - 0.001
    with pytest.raises(Interrupted):
        second.acquire(0)
    clock.now += 0.001
    second.acquire(0)
    assert not first.held


def test_announcing_is_no_sign_of_life(lease: Make, clock: Clock) -> None:
    """The newcomer's own write must not make it wait for another whole time to live."""
    lease(1).acquire(0)
    second = lease(2)
    with pytest.raises(Interrupted, match="attempt 1 of step 'plan' of run 'run 1' still works"):
        second.acquire(TTL / 2)
    second.acquire(TTL / 2 + 1)
    assert second.held


def test_the_older_cannot_renew_once_the_newer_asked(lease: Make, clock: Clock) -> None:
    first, second = lease(1), lease(2)
    first.acquire(0)
    first.renew()
    with pytest.raises(Interrupted):
        second.acquire(0)
    for call in (first.check, first.renew):
        with pytest.raises(Superseded, match="attempt 2 of step 'plan'"):
            call()
    assert not first.held
    # It stops, and lets go: the newer one need not wait.
    first.release()
    second.acquire(0)
    assert clock.now == 1000.0


def test_the_older_is_refused_for_good(lease: Make) -> None:
    second = lease(2)
    second.acquire(0)
    second.release()
    with pytest.raises(Superseded, match=r"attempt 2 .* has taken over from attempt 1"):
        lease(1).acquire(0)


def test_a_deferred_attempt_goes_on_in_another_process(lease: Make) -> None:
    before, after = lease(1, "worker-1"), lease(1, "worker-2")
    before.acquire(0)
    before.release()
    after.acquire(0)
    after.check()
    with pytest.raises(Interrupted):
        lease(1, "worker-1").acquire(0)


def test_a_delivery_twice_works_once(lease: Make) -> None:
    one, other = lease(1), lease(1)
    one.acquire(0)
    with pytest.raises(Interrupted, match="still works"):
        other.acquire(0)
    other.acquire(2 * TTL)
    with pytest.raises(Superseded, match=r"step 'plan' .* attempt 1 of it is at work in worker"):
        one.check()


def test_wall_clocks_do_not_matter(lease: Make, clock: Clock) -> None:
    first, second = lease(1), lease(2, skew=1e9)
    first.acquire(0)
    with pytest.raises(Interrupted):
        second.acquire(TTL - 1)
    assert not second.held


def test_a_process_that_slept_may_go_on_if_nobody_came(lease: Make, clock: Clock) -> None:
    mine = lease()
    mine.acquire(0)
    clock.now += 10 * TTL
    assert not mine.held
    mine.check()
    assert mine.held


def test_a_renewal_whose_answer_was_lost(lease: Make, store: Objects) -> None:
    mine = lease()
    mine.acquire(0)
    store.trouble = "lost answer"
    with pytest.raises(StoreDown):
        mine.renew()
    store.trouble = ""
    mine.check()
    assert mine.held


def test_a_lease_is_not_renewed_before_it_is_held(lease: Make) -> None:
    with pytest.raises(RuntimeError, match="without being held"):
        lease().renew()


def test_superseded_is_classified_as_interrupted() -> None:
    failure = Superseded("a newer attempt")
    assert failure.failure_class == "Interrupted"
    assert str(failure) == "Interrupted: a newer attempt"
    assert type(failure_from_dict(failure_to_dict(failure))) is Interrupted
    assert "Superseded" not in FAILURE_CLASSES


class Rivals(RuleBasedStateMachine):
    """Attempts of one step in any order, each call possibly in the middle of another's."""

    @initialize(skews=st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
    def start(self, skews: list[float]) -> None:
        self.clock = Clock()
        self.store = Objects()
        # The last one is a second delivery of attempt 2.
        self.numbers = [1, 2, 3, 2]
        self.leases = [
            Lease(
                self.store,
                AttemptKey(STEP, number),
                owner=f"owner-{index}",
                ttl=TTL,
                clock=lambda skew=skew: self.clock() + skew,  # type: ignore[misc]
                sleep=self.clock.sleep,
            )
            for index, (number, skew) in enumerate(zip(self.numbers, skews, strict=True))
        ]
        self.announced = 0

    who = st.integers(0, 3)
    what = st.sampled_from(["acquire", "renew", "release"])
    trouble = st.sampled_from(["", "", "", "down", "lost answer"])

    def act(self, who: int, what: str) -> None:
        lease, number = self.leases[who], self.numbers[who]
        try:
            if what == "acquire":
                lease.acquire(0)
                assert lease.held
            elif what == "renew":
                announced = self.announced
                lease.renew()
                assert number >= announced, "renewed although a newer attempt had asked"
            else:
                lease.release()
                assert not lease.held
        except Superseded:
            assert not lease.held
        except (Interrupted, StoreDown, RuntimeError):
            pass
        content = self.store.objects.get(lease.key)
        if content is not None:
            self.announced = max(self.announced, json.loads(content)["newest"])

    @rule(who=who, what=what, trouble=trouble)
    def alone(self, who: int, what: str, trouble: str) -> None:
        self.store.trouble = trouble
        self.act(who, what)
        self.store.trouble = ""

    @rule(who=who, what=what, other=who, meanwhile=what)
    def interleaved(self, who: int, what: str, other: int, meanwhile: str) -> None:
        if other != who:
            self.store.meanwhile = lambda: self.act(other, meanwhile)
        self.act(who, what)
        self.store.meanwhile = None

    @rule(who=who, rival=who)
    def two_meet(self, who: int, rival: int) -> None:
        """The commonest story, so that the search need not find it by chance."""
        self.act(who, "acquire")
        self.act(rival, "acquire")

    @rule(seconds=st.sampled_from([TTL / 2, TTL - 0.5, TTL]))
    def time_goes_on(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def never_two_holders(self) -> None:
        assert sum(lease.held for lease in getattr(self, "leases", [])) <= 1


Rivals.TestCase.settings = settings(max_examples=250, stateful_step_count=30, deadline=None)
TestRivals = Rivals.TestCase


def real_lease(store: ArtifactStore, number: int = 1, ttl: float = 1.2) -> Lease:
    return Lease(store, AttemptKey(STEP, number), owner=f"pid {os.getpid()}", ttl=ttl)


def test_kept_it_outlives_its_time_to_live(store: Objects) -> None:
    first = real_lease(store, 1, ttl=0.6)
    first.acquire(0)
    lost: list[Interrupted] = []
    with first.keep(lost.append):
        time.sleep(1.5)
        first.check()
    assert lost == []
    assert not any(thread.name == "agents-lease" for thread in threading.enumerate())


def test_a_superseded_attempt_is_told_once(store: Objects) -> None:
    first, second = real_lease(store, 1), real_lease(store, 2)
    first.acquire(0)
    told = threading.Event()
    lost: list[Interrupted] = []

    def on_lost(failure: Interrupted) -> None:
        lost.append(failure)
        told.set()

    with first.keep(on_lost):
        with pytest.raises(Interrupted):
            second.acquire(0)
        assert told.wait(30)
        with pytest.raises(Superseded):
            first.check()
        time.sleep(0.5)
    assert [type(failure) for failure in lost] == [Superseded]


def test_without_the_store_the_lease_runs_out(
    store: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    mine = real_lease(store)
    mine.acquire(0)
    told = threading.Event()
    lost: list[Interrupted] = []

    def on_lost(failure: Interrupted) -> None:
        lost.append(failure)
        told.set()

    with mine.keep(on_lost):
        store.trouble = "down"
        assert told.wait(30)
    assert "could not be renewed for" in lost[0].reason
    assert "was not renewed" in caplog.text
    store.trouble = ""
    with pytest.raises(Interrupted, match="could not be renewed"):
        mine.check()


@pytest.mark.integration
def test_an_orphan_ends_itself(tmp_path: Path) -> None:
    """The supervisor dies; its child, which lives on, is told and may write no more."""
    store = LocalArtifactStore(tmp_path)
    reader, writer = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        if os.fork() != 0:
            # The child holds the lease by the time it says so; then this process dies.
            time.sleep(60)
            os._exit(1)
        _orphan(store, writer)
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as said:
        assert said.readline() == b"held\n"
        os.kill(supervisor, signal.SIGKILL)
        os.waitpid(supervisor, 0)
        assert said.readline() == b"Interrupted: supervisor\n"
        assert said.readline() == b"check: Interrupted\n"


def _orphan(store: ArtifactStore, writer: int) -> None:
    told = threading.Event()

    def on_lost(failure: Interrupted) -> None:
        word = "supervisor" if "supervisor" in failure.reason else failure.reason
        os.write(writer, f"{failure.failure_class}: {word}\n".encode())
        told.set()

    try:
        lease = real_lease(store, ttl=30)
        lease.acquire(0)
        with lease.keep(on_lost):
            os.write(writer, b"held\n")
            told.wait(60)
            try:
                lease.check()
            except Interrupted as failure:
                os.write(writer, f"check: {failure.failure_class}\n".encode())
    finally:
        os._exit(0)


@pytest.mark.integration
def test_a_killed_holder_is_followed(tmp_path: Path) -> None:
    store = LocalArtifactStore(tmp_path)
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            lease = real_lease(store, 1)
            lease.acquire(0)
            with lease.keep(lambda failure: None):
                os.write(writer, b"held\n")
                time.sleep(60)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as said:
        assert said.readline() == b"held\n"
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    second = real_lease(store, 2)
    second.acquire(30)
    assert second.held
    assert state_of(store)["attempt"] == 2
