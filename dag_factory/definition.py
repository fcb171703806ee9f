"""The workflow language: what a definition may say.

A validator that fails says what is wrong and, after a semicolon, what is allowed.
"""

# Pydantic would evaluate postponed annotations one by one, a third of this module's import; so
# there is no `from __future__ import annotations` here.
import re
from contextlib import suppress
from datetime import date, timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from airflow_agent_provider.agents.failures import FAILURE_CLASSES
from airflow_agent_provider.agents.path_patterns import pattern_fault
from dag_factory.errors import closest, nearest, show

#: Kinds of steps that this release does not know yet, by the key that makes a step one of them.
LATER_KINDS = frozenset(("repeat", "publish", "workflow"))
_LATER_STEP_SETTINGS = frozenset(("resources",))
_LATER_STEP_KEYS = _LATER_STEP_SETTINGS.union(
    ("pick", "on_conflict", "for_each", "max_parallel", "params"), LATER_KINDS
)
#: Keys of the language that this release does not know yet, by the model they belong to.
LATER: dict[str, frozenset[str]] = {
    "Workflow": frozenset(("outlets", "deadline")),
    "Defaults": _LATER_STEP_SETTINGS,
    "AgentStep": _LATER_STEP_KEYS,
    "CommandStep": _LATER_STEP_KEYS,
    "ApproveStep": _LATER_STEP_KEYS,
}

#: Failure classes that ``retry: {on: …}`` may name: of the others, no retry can help.
RETRYABLE = tuple(name for name, cls in FAILURE_CLASSES.items() if cls.retryable)

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
DURATION_PATTERN = re.compile(
    r"(?:([0-9]{1,4})d)?(?:([0-9]{1,5})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,8})s)?"
)
_LONGEST = timedelta(days=365)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
EXPRESSION_PATTERN = re.compile(r"\{\{(?:(?!\}\}|\{\{)[\s\S])+\}\}")
CREDENTIALS_PATTERN = r"https?://[^/\s]*@"


def _name(value: str) -> str:
    # Also a component of paths and git refs, hence no leading dot.
    if not NAME_PATTERN.fullmatch(value):
        raise ValueError(
            f"{show(value)} is no name; up to 200 letters, digits, '-', '_' and '.', "
            "the first a letter or digit"
        )
    return value


def _duration(value: Any) -> timedelta:
    match = DURATION_PATTERN.fullmatch(value) if isinstance(value, str) and value else None
    if match is None:
        raise ValueError(f"{show(value)} is no duration; write 30s, 45m, 2h, 1d or 1h30m")
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    duration = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if not timedelta() < duration <= _LONGEST:
        raise ValueError(f"{show(value)} is out of range; from 1s to 365d")
    return duration


def _one_or_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _repository_url(value: str) -> str:
    if re.match(CREDENTIALS_PATTERN, value):
        raise ValueError(
            "the URL holds credentials, which everybody could read; "
            "put them into a connection of type git, and name it with 'connection'"
        )
    return value


def _expression(value: str) -> str:
    if not EXPRESSION_PATTERN.fullmatch(value.strip()):
        raise ValueError(
            f"{show(value)} is no expression; one in double braces and nothing else, such as "
            "'{{ steps.review.output.approved }}'"
        )
    return value


def _date(value: Any) -> date:
    # YAML's own dates are texts here.
    if isinstance(value, str) and _DATE.fullmatch(value):
        with suppress(ValueError):
            return date.fromisoformat(value)
    raise ValueError(f"{show(value)} is no date; write 2026-01-31")


def _timezone(value: str) -> str:
    from zoneinfo import ZoneInfo, available_timezones

    try:
        ZoneInfo(value)
    except (ValueError, OSError, LookupError):
        names = available_timezones()
        hint = nearest(value, names) if closest(value, names) else "such as Europe/Berlin or UTC"
        raise ValueError(f"unknown time zone {show(value)}; {hint}") from None
    return value


def _workspace_path(value: str) -> str:
    parts = value.split("/")
    if value.startswith("/") or "\\" in value or ".." in parts:
        raise ValueError(f"{show(value)} leads out of the workspace; a path below it, without '..'")
    if "" in parts or "." in parts or parts[0].lower() == ".git":
        raise ValueError(f"{show(value)} is no file of the workspace; a path such as docs/plan.md")
    return value


def _one_file(value: str) -> str:
    if "*" in value or "?" in value:
        raise ValueError(f"{show(value)} is a pattern; name each file")
    return value


def _pattern(value: str) -> str:
    if fault := pattern_fault(value):
        raise ValueError(f"{show(value)} {fault}")
    return value


def _command(value: str) -> str:
    if not value.strip():
        raise ValueError("a blank command proves nothing; write one such as pytest -q")
    return value


def _retryable(value: str) -> str:
    if value in RETRYABLE:
        return value
    meant = closest(value, FAILURE_CLASSES)
    if meant is not None and meant not in RETRYABLE:
        raise ValueError(f"{meant!r} is never retried, since no retry can help; remove it")
    raise ValueError(f"unknown failure class {show(value)}; {nearest(value, RETRYABLE)}")


def _schema(value: Any) -> str | dict[str, Any]:
    if isinstance(value, str | dict) and value:
        return value
    raise ValueError(f"'schema' is {show(value)}; the name of a JSON file, or the schema itself")


Name = Annotated[str, AfterValidator(_name)]
Text = Annotated[str, Field(min_length=1)]
Duration = Annotated[timedelta, BeforeValidator(_duration)]
AccessMode = Literal["write", "read_only"]
#: Airflow's own, as of 3.3 (``airflow.sdk.TriggerRule``).
TriggerRule = Literal[
    "all_success",
    "all_failed",
    "all_done",
    "all_done_min_one_success",
    "all_done_setup_success",
    "one_success",
    "one_failed",
    "one_done",
    "none_failed",
    "none_failed_min_one_success",
    "none_skipped",
    "all_skipped",
    "always",
]
NetworkMode = Literal["model", "open"]
WorkspacePath = Annotated[Text, AfterValidator(_workspace_path)]
Command = Annotated[Text, AfterValidator(_command)]
Patterns = Annotated[
    list[Annotated[Text, AfterValidator(_pattern)]],
    Field(min_length=1),
    BeforeValidator(_one_or_list),
]


class _Strict(BaseModel):
    # A task parses its definition anew: building only the validator of the whole, at its first use,
    # takes a third of the time that building each model's takes.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class Agent(_Strict):
    """One agent that may do a step.

    :param name: the agent's name.
    :param model: the vendor's model name.
    :param connection: id of the agent's connection; default the one that is named after the agent.
    :param options: settings of this agent alone, as its hook documents them.
    """

    name: Text
    model: Text | None = None
    connection: Text | None = None
    options: dict[str, Any] = {}


def _agents(value: Any) -> Any:
    if isinstance(value, str | dict):
        value = [value]
    if not isinstance(value, list):
        return value
    return [{"name": item} if isinstance(item, str) else item for item in value]


class Output(_Strict):
    """What a step hands on.

    :param path: file of the workspace that the agent writes; without one its final answer is taken.
    :param schema_: JSON schema of the output, or the name of a file with it.
    """

    path: WorkspacePath | None = None
    schema_: Annotated[Any, AfterValidator(_schema)] = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _something(self) -> "Output":
        if self.path is None and self.schema_ is None:
            raise ValueError("'output' is empty; give a 'path', a 'schema' or both")
        return self


def _output(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class Retry(_Strict):
    """When a failed step is tried again.

    :param count: how often after the first attempt.
    :param delay: time before the first retry.
    :param backoff: ``exponential`` doubles the delay each time, ``constant`` keeps it, ``none``
        retries at once.
    :param max_delay: the longest delay.
    :param on: failure classes after which it is tried again; default all that a retry can help.
    """

    count: Annotated[int, Field(ge=0, le=100)] = 2
    delay: Duration = timedelta(seconds=30)
    backoff: Literal["exponential", "constant", "none"] = "exponential"
    max_delay: Duration = timedelta(minutes=10)
    on: (
        Annotated[
            list[Annotated[Text, AfterValidator(_retryable)]],
            Field(min_length=1),
            BeforeValidator(_one_or_list),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _coherent(self) -> "Retry":
        given = self.model_fields_set
        if self.backoff == "none" and given & {"delay", "max_delay"}:
            raise ValueError("'backoff: none' retries at once; remove the delays, or the backoff")
        if {"delay", "max_delay"} <= given and self.max_delay < self.delay:
            raise ValueError("'max_delay' is shorter than 'delay'; make it the longer one")
        return self


def _retry(value: Any) -> Any:
    return {"count": value} if type(value) is int else value


class Paths(_Strict):
    """Which files of the workspace a step may change.

    Patterns are those of :mod:`airflow_agent_provider.agents.path_patterns`.

    :param allow: patterns of the files that it may change; default all.
    :param deny: patterns of the files that it may not change, the allowed ones included.
    """

    allow: Patterns = []
    deny: Patterns = []

    @model_validator(mode="after")
    def _something(self) -> "Paths":
        if not self.allow and not self.deny:
            raise ValueError("'paths' is empty; give 'allow', 'deny' or both")
        return self


class Budget(_Strict):
    """What a run may spend: all of its steps and attempts together.

    :param usd: US dollars; where an agent reports tokens alone, they are priced.
    :param tokens: number of tokens, read and written.
    """

    usd: Annotated[float, Field(gt=0)] | None = None
    tokens: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _something(self) -> "Budget":
        if self.usd is None and self.tokens is None:
            raise ValueError("'budget' is empty; give 'usd', 'tokens' or both")
        return self


class Setup(_Strict):
    """What a workspace needs before its agent starts.

    :param run: shell commands, in this order, with the network open.
    :param files: files of the workspace that decide what the commands leave: while they stay the
        same, what the commands left before is taken.
    """

    run: Annotated[list[Command], Field(min_length=1), BeforeValidator(_one_or_list)]
    files: Annotated[
        list[Annotated[WorkspacePath, AfterValidator(_one_file)]], BeforeValidator(_one_or_list)
    ] = []


class Repository(_Strict):
    """The git repository that a workflow works on, unless a run names another.

    :param url: URL or path.
    :param ref: branch, tag or commit to start from; default the repository's default branch.
    :param connection: id of a connection of type ``git``, for a private repository.
    :param submodules: whether workspaces hold the files of submodules, to read.
    :param lfs: whether files that git-lfs manages have their content in workspaces, to read.
    :param sparse: patterns, as in ``paths``, of the files that workspaces hold, beside those at
        the top; default all.
    """

    url: Annotated[Text, AfterValidator(_repository_url)]
    ref: str = ""
    connection: Text | None = None
    submodules: bool = False
    lfs: bool = False
    sparse: Patterns = []


def _repository(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


Repair = Annotated[int, Field(ge=0, le=10)]
# What Airflow's databases hold.
Priority = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
AgentField = Annotated[list[Agent], Field(min_length=1), BeforeValidator(_agents)]
RetryField = Annotated[Retry, BeforeValidator(_retry)]


class Defaults(_Strict):
    """What holds for every step that does not say otherwise; the keys are those of a step."""

    agent: AgentField | None = None
    model: Text | None = None
    access: AccessMode | None = None
    retry: RetryField | None = None
    timeout: Duration | None = None
    stall: Duration | None = None
    prompt_contract: bool | None = None
    network: NetworkMode | None = None
    repair: Repair | None = None
    pool: Text | None = None
    priority: Priority | None = None


class StepBase(_Strict):
    """What every kind of step has.

    :param id: name of the step; later templates read its output as ``{{ steps.<id>.output }}``.
    :param depends_on: ids of the steps that come first.
    :param when: expression in the braces of a template; where it is false, the step is skipped,
        and with it what depends on it alone.
    :param trigger_rule: one of Airflow's rules of what must have become of the steps before; the
        default is that none has failed and, of several, at least one was not skipped.
    :param pool: Airflow's pool of which an attempt takes a slot, so that a team can bound how many
        agents of a vendor work at once.
    :param priority: of the attempts that wait for a slot, those with the highest come first.
    """

    id: Name
    depends_on: Annotated[list[Text], BeforeValidator(_one_or_list)] = []
    when: Annotated[Text, AfterValidator(_expression)] | None = None
    trigger_rule: TriggerRule | None = None
    pool: Text | None = None
    priority: Priority | None = None


class WorkspaceStep(StepBase):
    """What every kind of step has that works in the run's repository.

    :param retry: when a failed step is tried again.
    :param timeout: time for one attempt; default 1 h.
    :param access: what may be done to the workspace; default ``write``.
    :param output: what the step hands on; by default what the agent says in the end, or what the
        command writes to its standard output.
    :param changes: whether the step must, may or must not change files; default ``allowed``, and
        ``forbidden`` where the access is ``read_only``.
    :param paths: which files it may change; default all.
    :param network: what is reached from the workspace: the agent's ``model`` alone (the default),
        or what the worker reaches (``open``).
    """

    retry: RetryField | None = None
    timeout: Duration | None = None
    access: AccessMode | None = None
    output: Annotated[Output, BeforeValidator(_output)] | None = None
    changes: Literal["required", "allowed", "forbidden"] | None = None
    paths: Paths | None = None
    network: NetworkMode | None = None


class AgentStep(WorkspaceStep):
    """One agent's part of a workflow.

    :param agent: who does it; of several, each takes over where the one before cannot serve.
    :param model: the vendor's model name.
    :param prompt: name of a template, an ``s3://`` URL of one, or the text itself.
    :param context: more names for the template, as ``{{ context.<name> }}``.
    :param verify: shell commands that must succeed on what the agent left.
    :param repair: how often the agent is told, in the same session, what its work fails on before
        the attempt has failed; default 2.
    :param stall: time without a sign of life after which an attempt has failed; default 10 min.
    :param prompt_contract: whether the prompt ends in a statement of the step's contract.
    """

    agent: AgentField | None = None
    model: Text | None = None
    prompt: Text
    context: dict[str, Any] = {}
    verify: Annotated[list[Command], BeforeValidator(_one_or_list)] = []
    repair: Repair | None = None
    stall: Duration | None = None
    prompt_contract: bool | None = None

    @model_validator(mode="after")
    def _one_model(self) -> "AgentStep":
        if self.model is not None and any(agent.model for agent in self.agent or ()):
            raise ValueError("the model is given twice; keep 'model' here or under 'agent'")
        return self


class CommandStep(WorkspaceStep):
    """A command in the workspace, in the sandbox.

    :param run: the command, for ``/bin/sh -e``; a template, into which each value goes as one
        quoted word.
    """

    run: Command


class Approve(_Strict):
    """What a person is asked.

    :param subject: the question, a template.
    :param body: what helps to decide, a Markdown template; by default the outputs, changes and
        costs of the steps before.
    :param options: what may be chosen beside ``Reject``; each of them approves.
    :param timeout: how long an answer is waited for; by default for ever.
    :param assignees: ids of Airflow's users who may answer; empty lets everybody who may.
    :param on_reject: what a rejection does: ``fail`` the step (the default), ``skip`` it, or let
        the run ``continue``.
    """

    subject: Text
    body: Text | None = None
    options: Annotated[list[Text], Field(min_length=1), BeforeValidator(_one_or_list)] = ["Approve"]
    timeout: Duration | None = None
    assignees: Annotated[list[Text], BeforeValidator(_one_or_list)] = []
    on_reject: Literal["fail", "skip", "continue"] = "fail"


def _approve(value: Any) -> Any:
    return {"subject": value} if isinstance(value, str) else value


class ApproveStep(StepBase):
    """A person's decision, in Airflow's UI; the answer is the step's output.

    :param approve: what is asked, and of whom.
    """

    approve: Annotated[Approve, BeforeValidator(_approve)]


#: The kinds of steps, by the names that the errors' paths have them under.
KINDS: dict[str, type[StepBase]] = {
    "(agent step)": AgentStep,
    "(command step)": CommandStep,
    "(approval)": ApproveStep,
}
#: The key that says what a step does, and the kind that it makes it.
KIND_BY_KEY = {"prompt": "(agent step)", "run": "(command step)", "approve": "(approval)"}


def _kind(value: Any) -> str:
    """Return which kind of step a value is: by the key that says what is to be done."""
    given = value if isinstance(value, dict) else {}
    return next((kind for key, kind in KIND_BY_KEY.items() if key in given), "(agent step)")


Step = Annotated[
    Annotated[AgentStep, Tag("(agent step)")]
    | Annotated[CommandStep, Tag("(command step)")]
    | Annotated[ApproveStep, Tag("(approval)")],
    Discriminator(_kind),
]


class Workflow(_Strict):
    """A workflow: what it needs, and its steps.

    :param name: the workflow's name, its DAG's id and the stem of its file.
    :param description: one line for lists of workflows.
    :param tags: words to filter workflows by.
    :param owner: who answers for the workflow, as Airflow shows it.
    :param schedule: a cron expression or a preset such as ``@daily``; default on demand only.
    :param start_date: the first day on which the schedule starts runs.
    :param timezone: the schedule's time zone, such as ``Europe/Berlin``; default Airflow's own.
    :param max_active_runs: how many runs may be active at once; default Airflow's own.
    :param params: JSON schema of each parameter that a run may set.
    :param repository: the repository to work on; default a new empty one per run.
    :param setup: what a workspace needs before any step.
    :param budget: what a run may spend; default without bound.
    :param defaults: what holds for every step that does not say otherwise.
    :param steps: the steps.
    """

    name: Name
    description: str = ""
    tags: list[Annotated[str, Field(min_length=1, max_length=100)]] = []
    owner: Text | None = None
    schedule: str | None = None
    start_date: Annotated[date, BeforeValidator(_date)] | None = None
    timezone: Annotated[Text, AfterValidator(_timezone)] | None = None
    max_active_runs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    params: dict[str, dict[str, Any]] = {}
    repository: Annotated[Repository, BeforeValidator(_repository)] | None = None
    setup: Setup | None = None
    budget: Budget | None = None
    defaults: Defaults | None = None
    steps: Annotated[list[Step], Field(min_length=1)]
