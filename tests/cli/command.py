"""Airflow's own command line, in this process."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from airflow.cli.cli_config import ActionCommand
from airflow.cli.cli_parser import AirflowHelpFormatter, DefaultHelpParser, _add_command

from airflow_agent_provider.cli import get_agent_commands


class Done(NamedTuple):
    """What a command did.

    :param status: its exit status.
    :param out: what it printed on its standard output.
    :param err: what it printed on its standard error.
    """

    status: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Done:
    """Run ``airflow agents …``."""
    parser = DefaultHelpParser(prog="airflow", formatter_class=AirflowHelpFormatter)
    subparsers = parser.add_subparsers(dest="subcommand", metavar="GROUP_OR_COMMAND")
    subparsers.required = True
    for command in get_agent_commands():
        assert not isinstance(command, ActionCommand)
        _add_command(subparsers, command)
    status = 0
    capsys.readouterr()
    try:
        args = parser.parse_args(["agents", *words])
        args.func(args)
    except SystemExit as end:
        status = int(str(end.code or 0))
    printed = capsys.readouterr()
    return Done(status, printed.out, printed.err)
