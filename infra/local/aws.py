"""The stand-in for S3 and DynamoDB."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from infra.local.processes import Processes

ROOT = Path(__file__).parents[2]
REGION = "eu-central-1"
#: Twelve digits are an account of their own in the stand-in.
ACCOUNT = "000000000042"


class MinistackMissing(RuntimeError):
    """The stand-in is not installed; the text says how to install it."""


@dataclass(frozen=True)
class Aws:
    """An account at the stand-in.

    :param endpoint: URL of every service.
    :param account: twelve digits, as the access key; accounts do not see each other.
    :param secret: the secret key: any text, but none that may stand in a file, since Airflow's
        secrets are searched for in what agents leave.
    """

    endpoint: str
    account: str = ACCOUNT
    secret: str = field(default_factory=secrets.token_urlsafe, repr=False)

    def connection(self) -> str:
        """Return an Airflow connection to it, as JSON text."""
        return json.dumps(
            {
                "conn_type": "aws",
                "login": self.account,
                "password": self.secret,
                "extra": {"endpoint_url": self.endpoint, "region_name": REGION},
            }
        )

    def client(self, service: str) -> Any:
        """Return a boto3 client of a service."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            service,
            # A proxy, where there is one, does not lead to this machine's own servers.
            config=Config(proxies={}),
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.account,
            aws_secret_access_key=self.secret,
        )

    def create_bucket(self, name: str) -> None:
        """Create a bucket."""
        self.client("s3").create_bucket(
            Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION}
        )

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the keys of a bucket, sorted."""
        pages = self.client("s3").get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=bucket, Prefix=prefix)
        return sorted(item["Key"] for page in found for item in page.get("Contents", []))

    def items(self, table: str, pk: str) -> list[dict[str, Any]]:
        """Return the items of a table under one partition key ``pk``, sorted by ``sk``."""
        from boto3.dynamodb.types import TypeDeserializer

        read = TypeDeserializer().deserialize
        pages = self.client("dynamodb").get_paginator("query")
        found = pages.paginate(
            TableName=table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": pk}},
            ConsistentRead=True,
        )
        return [
            {name: read(value) for name, value in item.items()}
            for page in found
            for item in page["Items"]
        ]


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nobody uses, each a different one."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def port_answers(port: int) -> bool:
    """Return whether somebody accepts connections at a port of the loopback interface."""
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start_ministack(processes: Processes, account: str = ACCOUNT) -> Aws:
    """Start the stand-in on a free port, with its state in memory.

    :raises MinistackMissing: if it is not installed.
    """
    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    health = f"{endpoint}/_ministack/health"
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "PERSIST_STATE": "0",
        "S3_PERSIST": "0",
    }

    def ready() -> bool:
        try:
            return httpx.get(health, timeout=2, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    processes.start("ministack", [_program()], env=env, cwd=processes.folder, ready=ready)
    return Aws(endpoint, account)


def _program() -> str:
    own = ROOT / ".ministack" / "bin" / "ministack"
    program = str(own) if own.exists() else shutil.which("ministack")
    if program is None:
        raise MinistackMissing(
            f"the AWS stand-in is not installed: there is no {own}; run: make setup"
        )
    return program
