"""``airflow agents …``."""

from __future__ import annotations

from typing import Any


def get_agent_commands() -> list[Any]:
    """Return the commands, for Airflow's command line; the functions are imported when called."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand, lazy_load_command

    workflow = Arg(
        ("workflow",),
        metavar="WORKFLOW",
        help="Workflow file, or the name of a workflow in the DAGs folder",
    )
    validate = ActionCommand(
        name="validate",
        help="Check workflow files; print each error as FILE:LINE:COLUMN and exit 1 if any",
        func=lazy_load_command("airflow_agent_provider.cli.validate.validate"),
        args=(Arg(("paths",), nargs="+", metavar="PATH", help="Workflow file, or folder of them"),),
    )
    schema = ActionCommand(
        name="schema",
        help="Print the JSON Schema of workflow files, for editors",
        description=(
            "Print the JSON Schema (draft 2020-12) of workflow files. An editor with YAML's "
            "language server takes it from a file's first line: "
            "# yaml-language-server: $schema=PATH"
        ),
        func=lazy_load_command("airflow_agent_provider.cli.schema.schema"),
        args=(),
    )
    show = ActionCommand(
        name="show",
        help="Show a workflow's graph: as text, for Mermaid, or as a picture",
        description="Show a workflow's graph: as text, for Mermaid, or as a picture.",
        func=lazy_load_command("airflow_agent_provider.cli.show.show"),
        args=(
            workflow,
            Arg(
                ("-f", "--format"),
                choices=("text", "mermaid", "svg", "png"),
                default="text",
                help="What to make: text (the default) or mermaid on the standard output, svg or "
                "png in a file",
            ),
            Arg(
                ("-s", "--save"),
                metavar="FILE",
                help="The picture's file; default WORKFLOW.svg or .png in the current folder",
            ),
        ),
    )
    render = ActionCommand(
        name="render",
        help="Print a step's prompt as its agent would get it, without running anything",
        description=(
            "Print a step's prompt as its agent would get it, without running anything; of a step "
            "that is a command, the command. What earlier steps would leave is taken from "
            "--results, or shown as «steps.plan.output»."
        ),
        func=lazy_load_command("airflow_agent_provider.cli.render.render"),
        args=(
            workflow,
            Arg(("step",), metavar="STEP", help="Id of the step"),
            Arg(("-c", "--conf"), metavar="JSON", help="Parameters, as for airflow dags trigger"),
            Arg(
                ("-r", "--results"),
                metavar="FILE",
                help='Results of earlier steps, a JSON file such as {"plan": {"output": "…"}}',
            ),
        ),
    )
    new = ActionCommand(
        name="new",
        help="Write a workflow and its prompts from a template; never over a file",
        description=(
            "Write a workflow of three steps and its prompts, valid as they stand, and what their "
            "folder lacks: the file that loads workflows, and the schema for editors. No file is "
            "overwritten."
        ),
        func=lazy_load_command("airflow_agent_provider.cli.new.new"),
        args=(
            Arg(("name",), metavar="NAME", help="The workflow's name"),
            Arg(
                ("-i", "--in"),
                dest="folder",
                metavar="FOLDER",
                help="The workflow's folder; default the DAGs folder",
            ),
            Arg(("-a", "--agent"), metavar="AGENT", default="codex", help="Default codex"),
        ),
    )
    doctor = ActionCommand(
        name="doctor",
        help="Look at what agents need on this machine; print what mends what is missing",
        func=lazy_load_command("airflow_agent_provider.cli.doctor.doctor"),
        args=(
            Arg(("agent",), nargs="*", metavar="AGENT", help="Only these agents"),
            Arg(("--online",), action="store_true", help="Ask the vendors about the keys, too"),
        ),
    )
    mirror = GroupCommand(
        name="mirror",
        help="The copy of workflow state in DynamoDB",
        subcommands=(
            ActionCommand(
                name="reconcile",
                help="Make the mirror equal to Airflow's truth; print what was mended",
                func=lazy_load_command("airflow_agent_provider.cli.mirror.reconcile"),
                args=(
                    Arg(("--since",), help="Only runs that changed since this time (ISO 8601)"),
                    Arg(("--dag-id",), help="Only this workflow"),
                    Arg(("--run-id",), help="Only this run; needs --dag-id"),
                ),
            ),
        ),
    )
    return [
        GroupCommand(
            name="agents",
            help="Coding agents as workflow steps",
            subcommands=(validate, schema, show, render, new, doctor, mirror),
        )
    ]
