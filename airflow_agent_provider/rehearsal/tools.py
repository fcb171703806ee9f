"""The tools by which agents run commands and write files, by the names that they offer them under.

A table: an agent that calls its tools otherwise is one row more. Codex's tools, which belong to its
wire, are beside it.
"""

from __future__ import annotations

import shlex

from airflow_agent_provider.rehearsal.script import Write


def write_command(write: Write) -> str:
    """Return the shell command that writes a file, and its folder where there is none."""
    path = shlex.quote(write.path)
    return f'mkdir -p -- "$(dirname -- {path})" && printf %s {shlex.quote(write.content)} > {path}'
