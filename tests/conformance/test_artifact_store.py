"""What every artifact store does; run on local files and on S3, with several processes at once."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_agent_provider.hooks.artifacts import (
    ArtifactExists,
    ArtifactStore,
    SwapConflict,
    open_store,
)
from infra.local.aws import Aws

RACERS = 8
KEYS = 5
ROUNDS = 3


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store; its connection is in the environment, as on a worker."""
    if request.param == "file":
        return (tmp_path / "artifacts of mine").as_uri()
    aws: Aws = request.getfixturevalue("ministack")
    monkeypatch.setenv("AIRFLOW_CONN_AWS_TEST", aws.connection())
    return f"s3://{request.getfixturevalue('s3_bucket')}/some/prefix"


def opened(url: str) -> ArtifactStore:
    return open_store(url, "aws_test")


@pytest.fixture
def store(url: str) -> ArtifactStore:
    return opened(url)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def test_an_artifact_is_stored_and_read(store: ArtifactStore, elsewhere: Path) -> None:
    stored = store.put("demo/run/plan/-1/1/prompt.md", "Größe\n".encode())
    assert stored.sha256 == hashlib.sha256("Größe\n".encode()).hexdigest()
    assert stored.size == 8
    assert stored.uri == store.uri(stored.key)
    assert stored.uri.startswith(store.root)
    assert store.exists(stored.key)
    assert store.get(stored.key) == "Größe\n".encode()
    store.fetch(stored.key, elsewhere / "deep/prompt.md")
    assert (elsewhere / "deep/prompt.md").read_text() == "Größe\n"
    assert [path.name for path in (elsewhere / "deep").iterdir()] == ["prompt.md"]


def test_a_file_is_stored(store: ArtifactStore, elsewhere: Path) -> None:
    file = elsewhere / "checkpoint.bundle"
    file.write_bytes(bytes(range(256)) * 8000)
    stored = store.put("a/checkpoint.bundle", file)
    assert (stored.size, stored.sha256) == (
        2_048_000,
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )
    assert store.get("a/checkpoint.bundle") == file.read_bytes()
    assert store.put("a/checkpoint.bundle", file) == stored


def test_an_empty_artifact_is_one(store: ArtifactStore) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""


def test_an_artifact_never_changes(store: ArtifactStore) -> None:
    first = store.put("a/b", b"one")
    assert store.put("a/b", b"one") == first
    with pytest.raises(ArtifactExists, match="a/b exists with other content"):
        store.put("a/b", b"two")
    assert store.get("a/b") == b"one"


def test_what_is_not_there(store: ArtifactStore, elsewhere: Path) -> None:
    assert not store.exists("a/b")
    assert store.read("a/b") is None
    assert list(store.keys("a")) == []
    with pytest.raises(FileNotFoundError, match="a/b"):
        store.get("a/b")
    with pytest.raises(FileNotFoundError, match="a/b"):
        store.fetch("a/b", elsewhere / "x")
    assert list(elsewhere.iterdir()) == []


def test_a_folder_is_no_artifact(store: ArtifactStore) -> None:
    store.put("a/b/c", b"x")
    assert not store.exists("a/b")
    assert store.read("a/b") is None
    assert store.read("a/b/c/d") is None


def test_keys_are_those_of_a_folder_sorted(store: ArtifactStore) -> None:
    for key in ("r/s/2/x", "r/s/1/x", "r/s/1/t/0002.jsonl", "r/s/1-x/y", "r/s2/x", "r/é"):
        store.put(key, b"x")
    store.swap("r/s/lease.json", b"{}", None)
    assert list(store.keys("r/s")) == [
        "r/s/1-x/y",
        "r/s/1/t/0002.jsonl",
        "r/s/1/x",
        "r/s/2/x",
        "r/s/lease.json",
    ]
    assert list(store.keys("r/s/1/")) == ["r/s/1/t/0002.jsonl", "r/s/1/x"]
    assert list(store.keys(""))[-2:] == ["r/s2/x", "r/é"]


def test_uris_lead_back_to_keys(store: ArtifactStore) -> None:
    for key in ("a/b.md", "größe/a b+c%20d#e?.md"):
        assert store.key(store.uri(key)) == key
    for uri in ("https://example.org/a", "s3://other-bucket/some/prefix/a", "file:///other/a"):
        with pytest.raises(ValueError, match="is not in the artifact store"):
            store.key(uri)


@pytest.mark.parametrize(
    "key", ["", "/a", "a//b", "a/", "../a", "a/../b", "a/.", ".agents-locks/00", "a\0", "x" * 1025]
)
def test_keys_that_lead_elsewhere_are_refused(
    store: ArtifactStore, elsewhere: Path, key: str
) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: store.put(key, b"x"),
        lambda: store.get(key),
        lambda: store.fetch(key, elsewhere / "x"),
        lambda: store.exists(key),
        lambda: store.read(key),
        lambda: store.swap(key, b"x", None),
        lambda: store.uri(key),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="is no key of an artifact"):
            call()


def test_an_object_is_swapped_by_its_version(store: ArtifactStore) -> None:
    first = store.swap("lease.json", b"one", None)
    assert store.read("lease.json") == (b"one", first)
    second = store.swap("lease.json", b"two", first)
    assert store.read("lease.json") == (b"two", second)
    assert store.get("lease.json") == b"two"
    for version in (None, first, "unknown"):
        with pytest.raises(SwapConflict):
            store.swap("lease.json", b"three", version)
    assert store.read("lease.json") == (b"two", second)


def test_an_object_that_is_not_there_has_no_version(store: ArtifactStore) -> None:
    version = store.swap("a", b"one", None)
    with pytest.raises(SwapConflict):
        store.swap("b", b"one", version)
    assert not store.exists("b")


def race(worker: Callable[..., None], url: str) -> list[Any]:
    """Run ``worker(url, number, results)`` in several processes at once."""
    # Each process opens a store, with a client and locks, of its own; only the imports are shared.
    opened(url).exists("nothing")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=worker, args=(url, number, results)) for number in range(RACERS)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * RACERS
    return found


def create(url: str, number: int, results: Any) -> None:
    store = opened(url)
    won = []
    for n in range(KEYS):
        try:
            store.put(f"race/{n}", str(number).encode())
            won.append(n)
        except ArtifactExists:
            pass
    results.put((number, won))


def increment(url: str, number: int, results: Any) -> None:
    store = opened(url)
    done = 0
    while done < ROUNDS:
        content, version = store.read("counter") or (b"{}", None)
        counts = json.loads(content)
        counts[str(number)] = counts.get(str(number), 0) + 1
        try:
            store.swap("counter", json.dumps(counts).encode(), version)
            done += 1
        except SwapConflict:
            continue
    results.put(done)


@pytest.mark.integration
def test_of_many_creators_one_wins(url: str) -> None:
    winners = {n: number for number, won in race(create, url) for n in won}
    store = opened(url)
    assert {n: int(store.get(f"race/{n}")) for n in range(KEYS)} == winners
    assert len(list(store.keys(""))) == KEYS


@pytest.mark.integration
def test_of_many_swappers_none_loses_an_update(url: str) -> None:
    race(increment, url)
    content, _ = opened(url).read("counter") or (b"", "")
    assert json.loads(content) == {str(number): ROUNDS for number in range(RACERS)}
