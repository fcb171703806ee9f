"""Small things that tests of the mirror share."""

from __future__ import annotations

import json
import random

from infra.local.aws import ROOT, free_ports

__all__ = ["ROOT", "aws_connection", "free_port"]


def free_port() -> int:
    """Return a port that was free a moment ago."""
    return free_ports(1)[0]


def aws_connection(endpoint: str, **config: float) -> str:
    """Return an Airflow connection to a stand-in, as JSON, with an account of its own.

    :param config: of botocore, such as ``read_timeout``.
    """
    return json.dumps(
        {
            "conn_type": "aws",
            "login": f"{random.randrange(10**11, 10**12)}",
            "password": "test",
            "extra": {
                "endpoint_url": endpoint,
                "region_name": "us-east-1",
                "config_kwargs": config,
            },
        }
    )
