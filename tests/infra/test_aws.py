"""The stand-in for S3 and DynamoDB, as the demo reads it."""

from __future__ import annotations

import json

import pytest

from infra.local.aws import Aws, free_ports, port_answers

pytestmark = pytest.mark.integration


def test_free_ports_differ_and_are_free() -> None:
    ports = free_ports(20)

    assert len(set(ports)) == 20
    assert not any(port_answers(port) for port in ports)


def test_keys_are_listed_below_a_prefix(aws: Aws) -> None:
    aws.create_bucket("papers")
    for key in ("b/2", "a/1", "b/1"):
        aws.client("s3").put_object(Bucket="papers", Key=key, Body=b"")

    assert aws.keys("papers") == ["a/1", "b/1", "b/2"]
    assert aws.keys("papers", "b/") == ["b/1", "b/2"]


def test_items_are_read_as_plain_values_in_the_order_of_their_sort_key(aws: Aws) -> None:
    names = [("pk", "HASH"), ("sk", "RANGE")]
    client = aws.client("dynamodb")
    client.create_table(
        TableName="runs",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name, _ in names],
        KeySchema=[{"AttributeName": name, "KeyType": kind} for name, kind in names],
    )
    for pk, sk in (("1", "STEP"), ("1", "RUN"), ("2", "RUN")):
        usage = {"M": {"total_tokens": {"N": "7"}}}
        item = {"pk": {"S": pk}, "sk": {"S": sk}, "usage": usage}
        client.put_item(TableName="runs", Item=item)

    items = aws.items("runs", "1")

    assert [item["sk"] for item in items] == ["RUN", "STEP"]
    assert items[0]["usage"] == {"total_tokens": 7}


def test_accounts_do_not_see_each_other(aws: Aws) -> None:
    aws.create_bucket("letters")

    other = Aws(aws.endpoint, "999999999999").client("s3")

    assert other.list_buckets()["Buckets"] == []


def test_its_connection_is_one_of_airflow(aws: Aws) -> None:
    values = json.loads(aws.connection())

    assert values["extra"]["endpoint_url"] == aws.endpoint
    assert (values["login"], values["password"]) == (aws.account, aws.secret)
