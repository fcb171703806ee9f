"""What Airflow is told of this provider: connection types, settings and commands."""

from __future__ import annotations

from typing import Any

from airflow_agent_provider import __version__


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description, for the ``apache_airflow_provider`` entry point."""
    return {
        "package-name": "airflow-agent-provider",
        "name": "AI coding agents",
        "description": "Coding agents (Cursor, GitHub Copilot, OpenAI Codex, …) as workflow steps.",
        "versions": [__version__],
        "connection-types": [_ACP, _CLAUDE, _CODEX, _COPILOT, _CURSOR, _AIRFLOW_API],
        "config": {"agents": _CONFIG},
        "cli": ["airflow_agent_provider.cli.get_agent_commands"],
    }


_ACP = {
    "connection-type": "acp",
    "hook-class-name": "airflow_agent_provider.hooks.acp.AcpHook",
    "hook-name": "ACP agent",
    "ui-field-behaviour": {
        "hidden-fields": ["login", "schema", "port"],
        "relabeling": {"host": "Model API base URL", "password": "API key"},
        "placeholders": {"host": "https://api.openai.com/v1", "password": "sk-…"},
    },
    "conn-fields": {
        "preset": {
            "label": "Agent",
            "description": "A known agent, or none: then the command line says which it is.",
            "schema": {
                "type": ["string", "null"],
                "enum": ["none", "qwen", "opencode", "gemini", "goose"],
                "default": "none",
            },
        },
        "model": {
            "label": "Model",
            "description": "Used where a step names no model.",
            "schema": {"type": ["string", "null"], "default": None},
        },
        "command": {
            "label": "Command line",
            "description": "Starts the agent: the name of a program below [agents] programs, or "
            "an absolute path, and its arguments. Empty takes the known agent's own.",
            "schema": {"type": ["string", "null"], "default": None},
        },
        "environment": {
            "label": "Environment",
            "description": "Variables as JSON. {model_url}, {model_key}, {model} and {home} stand "
            "for what the session has. No secrets: the agent's commands can read them.",
            "schema": {"type": ["string", "null"], "default": None},
        },
        "api": {
            "label": "Model API",
            "description": "The kind of the model's API: openai, anthropic or gemini. Empty takes "
            "the known agent's own, else openai.",
            "schema": {"type": ["string", "null"], "default": None},
        },
        "read_only_folders": {
            "label": "Read-only folders",
            "description": "Folders of the worker that the program needs to see, one a line.",
            "schema": {"type": ["string", "null"], "default": None},
        },
        "auth_method": {
            "label": "Authentication method",
            "description": "Id of the method that the agent wants to be authenticated by.",
            "schema": {"type": ["string", "null"], "default": None},
        },
        "mode": {
            "label": "Session mode",
            "description": "Id of the agent's mode in which it works without asking.",
            "schema": {"type": ["string", "null"], "default": None},
        },
        "read_only_mode": {
            "label": "Read-only session mode",
            "description": "Id of the agent's mode in which it changes nothing; only used where "
            "there is no sandbox.",
            "schema": {"type": ["string", "null"], "default": None},
        },
        "session_files": {
            "label": "Session files",
            "description": "Patterns, below the session's home, of the files by which another "
            "worker continues a session, one a line; {id} stands for the session's id.",
            "schema": {"type": ["string", "null"], "default": None},
        },
    },
}

_CLAUDE = {
    "connection-type": "claude",
    "hook-class-name": "airflow_agent_provider.hooks.claude.ClaudeHook",
    "hook-name": "Claude Code",
    "ui-field-behaviour": {
        "hidden-fields": ["login", "schema", "port"],
        "relabeling": {"host": "API base URL", "password": "API key"},
        "placeholders": {"host": "https://api.anthropic.com", "password": "sk-ant-…"},
    },
    "conn-fields": {
        "model": {
            "label": "Model",
            "description": "Used where a step names no model; empty takes Claude Code's own "
            "default.",
            "schema": {"type": ["string", "null"], "default": None},
        },
    },
}

_CODEX = {
    "connection-type": "codex",
    "hook-class-name": "airflow_agent_provider.hooks.codex.CodexHook",
    "hook-name": "OpenAI Codex",
    "ui-field-behaviour": {
        "hidden-fields": ["login", "schema", "port"],
        "relabeling": {"host": "API base URL", "password": "API key"},
        "placeholders": {"host": "https://api.openai.com/v1", "password": "sk-…"},
    },
    "conn-fields": {
        "model": {
            "label": "Model",
            "description": "Used where a step names no model; empty takes Codex's own default.",
            "schema": {"type": ["string", "null"], "default": None},
        },
    },
}

_COPILOT = {
    "connection-type": "copilot",
    "hook-class-name": "airflow_agent_provider.hooks.copilot.CopilotHook",
    "hook-name": "GitHub Copilot",
    "ui-field-behaviour": {
        "hidden-fields": ["login", "schema", "port"],
        "relabeling": {"host": "Provider's base URL", "password": "API key"},
        "placeholders": {
            "host": "empty for a Copilot subscription, else https://api.openai.com/v1",
            "password": "token of the subscription (github_pat_…), or the provider's key",
        },
    },
    "conn-fields": {
        "model": {
            "label": "Model",
            "description": "Used where a step names no model. Needed with a provider of your own; "
            "empty takes Copilot's own default.",
            "schema": {"type": ["string", "null"], "default": None},
        },
        "provider": {
            "label": "Provider",
            "description": "Whose API it is. Empty: openai where there is a base URL, else "
            "copilot.",
            "schema": {
                "type": ["string", "null"],
                "enum": ["copilot", "openai", "azure", "anthropic", None],
                "default": None,
            },
        },
        "wire": {
            "label": "Wire",
            "description": "Which of its two APIs an openai or azure provider is spoken to by.",
            "schema": {
                "type": ["string", "null"],
                "enum": ["completions", "responses", None],
                "default": None,
            },
        },
        "program": {
            "label": "Program",
            "description": "Path of Copilot's program on the worker, where it is not below the "
            "folder of [agents] programs.",
            "schema": {"type": ["string", "null"], "default": None},
        },
    },
}

_CURSOR = {
    "connection-type": "cursor",
    "hook-class-name": "airflow_agent_provider.hooks.cursor.CursorHook",
    "hook-name": "Cursor",
    "ui-field-behaviour": {
        "hidden-fields": ["login", "schema", "port"],
        "relabeling": {"host": "API base URL", "password": "API key"},
        "placeholders": {"host": "https://api.cursor.com", "password": "key_…"},
    },
    "conn-fields": {
        "model": {
            "label": "Model",
            "description": "Used where a step names no model. At Cursor, empty takes its default.",
            "schema": {"type": ["string", "null"], "default": None},
        },
        "hosted": {
            "label": "At Cursor",
            "description": "true: at Cursor; false: on the worker; empty: at Cursor where the "
            "workflow has a repository. A step's option 'hosted' wins.",
            "schema": {"type": ["string", "null"], "default": None},
        },
        "requests_per_minute": {
            "label": "Requests per minute",
            "description": "What one triggerer may send in any minute; empty takes 20, which "
            "Cursor grants by default.",
            "schema": {"type": ["number", "null"], "default": None},
        },
    },
}

_AIRFLOW_API = {
    "connection-type": "airflow_api",
    "hook-class-name": "airflow_agent_provider.hooks.airflow_api.AirflowApiHook",
    "hook-name": "Airflow public API",
    "ui-field-behaviour": {
        "hidden-fields": ["schema", "port"],
        "relabeling": {"host": "Base URL", "login": "User", "password": "Password or token"},
        "placeholders": {"host": "http://localhost:8080"},
    },
}


def _option(
    description: str, default: str, example: str | None = None, kind: str = "string"
) -> dict[str, Any]:
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": kind,
        "example": example,
        "default": default,
    }


_CONFIG = {
    "description": "Coding agents as workflow steps.",
    "options": {
        "artifacts": _option(
            "URL below which prompts, transcripts, patches, outputs and checkpoints are stored: "
            "``file://…`` or ``s3://bucket/prefix``. Empty takes ``agents/artifacts`` in "
            "AIRFLOW_HOME, which serves one machine only.\n",
            "",
            "s3://my-bucket/agents",
        ),
        "workspaces": _option(
            "Folder of the worker for workspaces and repository mirrors. It must be the same path "
            "on every worker, since an agent's session names paths. Empty takes "
            "``agents/workspaces`` in AIRFLOW_HOME.\n",
            "",
            "/var/lib/airflow-agents",
        ),
        "programs": _option(
            "Folder of the worker for the agents' programs that come from npm; fill it with ``npm "
            "install --prefix FOLDER PACKAGE@VERSION``. Empty takes ``agents/programs`` in "
            "AIRFLOW_HOME.\n",
            "",
            "/opt/airflow-agents/programs",
        ),
        "aws_conn_id": _option("Connection for S3 and DynamoDB.\n", "aws_default"),
        "airflow_api_conn_id": _option(
            "Connection to Airflow's public API; the mirror's reconcile reads through it.\n",
            "airflow_api",
        ),
        "mirror_table": _option(
            "DynamoDB table that mirrors runs, steps and attempts. Empty means no mirror, and no "
            "listener is registered. With any listener, Airflow rejects DAGs that use "
            "``end_from_trigger``.\n",
            "",
            "airflow-agents",
        ),
        "push": _option(
            "When the run's branch is pushed to the repository: ``hosted`` pushes before a hosted "
            "agent starts, since it clones the branch; ``always`` also pushes after each succeeded "
            "step.\n",
            "hosted",
        ),
        "repositories": _option(
            "Repositories that a run may name when it is triggered, beside the one in its "
            "workflow's own file, which is always allowed: URL patterns, separated by spaces, in "
            "which ``*`` is any text and ``?`` one character. Paths of the worker, and URLs other "
            "than ``https``, need a pattern of their own. A workflow's connection serves such a "
            "repository only where a pattern names its host in full. Empty allows none.\n",
            "https://*",
            "https://github.com/you/* /srv/git/*",
        ),
        "lease_ttl": _option(
            "Seconds after which an attempt that no longer renews its lease has lost its step to "
            "the next attempt. It is renewed six times as often.\n",
            "60",
            kind="float",
        ),
        "prices": _option(
            "JSON file with USD per million tokens of models, before the provider's own list: "
            '``{"date": "2026-01-31", "models": {"<model>": {"input": 1.25, "cached": 0.125, '
            '"output": 10}}}``.\n',
            "",
            "/etc/airflow/agent-prices.json",
        ),
        "sandbox": _option(
            "Whether local agents run inside the bubblewrap box: ``required`` refuses to run them "
            "otherwise; ``auto`` runs them unboxed where the worker has no namespaces, and says "
            "so; ``off`` is for workers that are throw-away containers.\n",
            "required",
        ),
        "sandbox_read_only_paths": _option(
            "Folders of the worker that boxed programs may read besides /usr, such as toolchains; "
            "separated by colons. Their ``bin`` folders are searched for programs.\n",
            "",
            "/opt/node:/opt/jdk",
        ),
        "sandbox_memory": _option(
            "MiB of memory that one process in the box may allocate.\n", "8192", kind="integer"
        ),
        "sandbox_processes": _option(
            "How many processes may run in a box; root is not bound by it.\n",
            "1024",
            kind="integer",
        ),
        "sandbox_file_size": _option(
            "MiB that a file written in the box may have.\n", "2048", kind="integer"
        ),
        "sandbox_disk": _option(
            "MiB by which an agent's workspace and session home may grow.\n",
            "10240",
            kind="integer",
        ),
    },
}
