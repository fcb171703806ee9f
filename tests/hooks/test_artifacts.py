from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from moto import mock_aws

from airflow_agent_provider.agents.failures import (
    AuthenticationFailed,
    InvalidDefinition,
    Unavailable,
)
from airflow_agent_provider.hooks.artifacts import SwapConflict, content_type_of, open_store
from airflow_agent_provider.hooks.artifacts_s3 import S3ArtifactStore

REGION = {"region_name": "eu-central-1"}


@pytest.mark.parametrize(
    "url",
    ["", "/tmp/x", "gs://bucket/x", "file://host/x", "file:relative", "s3:///x", "https://h/x"],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidDefinition, match="takes file:///folder or s3://bucket/prefix"):
        open_store(url)


def test_opening_touches_nothing(tmp_path: Path) -> None:
    assert open_store((tmp_path / "x").as_uri()).root == (tmp_path / "x").as_uri()
    assert open_store("s3://bucket").root == "s3://bucket"
    assert open_store("s3://bucket/a/b/").uri("c") == "s3://bucket/a/b/c"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a/prompt.md", "text/markdown; charset=utf-8"),
        ("a/0001.jsonl", "application/x-ndjson"),
        ("a/outcome.json", "application/json"),
        ("a/checkpoint.bundle", "application/octet-stream"),
    ],
)
def test_the_ending_tells_the_content_type(key: str, expected: str) -> None:
    assert content_type_of(key) == expected


def test_a_killed_writer_leaves_no_artifact(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.agents-0123").write_bytes(b"half of it")
    assert list(store.keys("")) == []
    assert not store.exists("a/b")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    with pytest.raises(FileNotFoundError):
        store.put("a/b", tmp_path / "missing")
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        open_store(tmp_path.as_uri()).put("a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Any:
    connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": REGION}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_TEST", json.dumps(connection))
    with mock_aws():
        import boto3

        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        yield client


def test_s3_objects_carry_type_and_digest(s3: Any) -> None:
    stored = open_store("s3://bucket/x", "aws_test").put("a/prompt.md", b"text")
    head = s3.head_object(Bucket="bucket", Key="x/a/prompt.md")
    assert head["ContentType"] == "text/markdown; charset=utf-8"
    assert head["Metadata"]["sha256"] == stored.sha256


def test_a_bucket_that_does_not_exist(s3: Any) -> None:
    store = open_store("s3://nowhere", "aws_test")
    for call in (
        lambda: store.put("a", b"x"),
        lambda: store.read("a"),
        lambda: list(store.keys("")),
    ):
        with pytest.raises(InvalidDefinition, match=r"bucket 'nowhere' of .* does not exist"):
            call()


class Answers:
    """An S3 client of which each call is answered as told, to show what an answer means."""

    def __init__(self, code: str) -> None:
        self.code = code

    def put_object(self, **kwargs: Any) -> Any:
        from botocore.exceptions import ClientError

        raise ClientError({"Error": {"Code": self.code, "Message": "told so"}}, "PutObject")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("AccessDenied", AuthenticationFailed),
        ("ExpiredToken", AuthenticationFailed),
        ("SlowDown", Unavailable),
        ("InternalError", Unavailable),
    ],
)
def test_what_s3_refuses(code: str, expected: type[Exception]) -> None:
    store = S3ArtifactStore("bucket")
    store.__dict__["_client"] = Answers(code)
    with pytest.raises(expected, match="told so"):
        store.put("a", b"x")


def test_an_endpoint_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {
        **REGION,
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_TEST", json.dumps(connection))
    with pytest.raises(Unavailable, match="S3 cannot be reached"):
        open_store("s3://bucket", "aws_test").read("a")


def test_a_swap_whose_answer_was_lost_is_known_as_our_own(s3: Any) -> None:
    """botocore repeats a write whose answer did not come, and meets its own object."""
    store = S3ArtifactStore("bucket", "", "aws_test")
    client = store._client
    plain = client.put_object

    def twice(**kwargs: Any) -> Any:
        plain(**kwargs)
        return plain(**kwargs)

    client.put_object = twice
    version = store.swap("lease", b"mine", None)
    assert store.read("lease") == (b"mine", version)
    with pytest.raises(SwapConflict):
        store.swap("lease", b"mine", None)


def test_a_store_may_be_used_from_threads(s3: Any) -> None:
    store = open_store("s3://bucket", "aws_test")
    store.exists("warm")
    threads = [threading.Thread(target=store.put, args=(f"t/{n}", b"x")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(store.keys("t"))) == 8


def test_keys_go_on_over_pages(s3: Any) -> None:
    store = S3ArtifactStore("bucket", "x", "aws_test")
    expected = [f"many/{n}" for n in range(7)]
    for key in expected:
        store.put(key, b"")
    paginator = store._client.get_paginator

    class SmallPages:
        def paginate(self, **kwargs: Any) -> Any:
            pages = paginator("list_objects_v2").paginate
            return pages(**kwargs, PaginationConfig={"PageSize": 3})

    store._client.get_paginator = lambda name: SmallPages()
    assert list(store.keys("many")) == expected
