"""``airflow agents schema``: the workflow language for editors."""

from __future__ import annotations

import sys
from argparse import Namespace

from dag_factory.json_schema import schema_text


def schema(args: Namespace) -> None:
    """Print the JSON Schema of workflow files.

    :param args: nothing.
    """
    sys.stdout.write(schema_text())
