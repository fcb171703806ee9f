"""The workflow language: what a definition may say.

A validator that fails says what is wrong and, after a semicolon, what is allowed.
"""

# Pydantic would evaluate postponed annotations one by one, a third of this module's import; so
# there is no `from __future__ import annotations` here.
import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from airflow_agent_provider.agents.failures import FAILURE_CLASSES
from airflow_agent_provider.agents.path_patterns import pattern_fault
from dag_factory.errors import closest, nearest, show

#: Kinds of steps that this release does not know yet, by the key that makes a step one of them.
LATER_KINDS = frozenset(("run", "approve", "repeat", "publish", "workflow"))
_LATER_STEP_SETTINGS = frozenset(("pool", "priority", "resources"))
#: Keys of the language that this release does not know yet, by the model they belong to.
LATER: dict[str, frozenset[str]] = {
    "Workflow": frozenset(
        ("owner", "start_date", "timezone", "max_active_runs", "outlets", "deadline")
    ),
    "Defaults": _LATER_STEP_SETTINGS,
    "Step": _LATER_STEP_SETTINGS.union(
        ("pick", "on_conflict", "trigger_rule", "when", "for_each", "max_parallel", "params"),
        LATER_KINDS,
    ),
}

#: Failure classes that ``retry: {on: …}`` may name: of the others, no retry can help.
RETRYABLE = tuple(name for name, cls in FAILURE_CLASSES.items() if cls.retryable)

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
DURATION_PATTERN = re.compile(
    r"(?:([0-9]{1,4})d)?(?:([0-9]{1,5})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,8})s)?"
)
_LONGEST = timedelta(days=365)
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
    """

    url: Annotated[Text, AfterValidator(_repository_url)]
    ref: str = ""
    connection: Text | None = None


def _repository(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


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
    repair: Annotated[int, Field(ge=0, le=10)] | None = None


class Step(Defaults):
    """One agent's part of a workflow.

    :param id: name of the step; later prompts read its output as ``{{ steps.<id>.output }}``.
    :param agent: who does it; of several, each takes over where the one before cannot serve.
    :param model: the vendor's model name.
    :param prompt: name of a template, an ``s3://`` URL of one, or the text itself.
    :param context: more names for the template, as ``{{ context.<name> }}``.
    :param access: what the agent may do to the workspace; default ``write``.
    :param output: what the step hands on; default the agent's final answer.
    :param changes: whether the step must, may or must not change files; default ``allowed``, and
        ``forbidden`` where the access is ``read_only``.
    :param paths: which files it may change; default all.
    :param verify: shell commands that must succeed on what the agent left.
    :param repair: how often the agent is told, in the same session, what its work fails on before
        the attempt has failed; default 2.
    :param depends_on: ids of the steps that come first.
    :param retry: when a failed step is tried again.
    :param timeout: time for one attempt; default 1 h.
    :param stall: time without a sign of life after which an attempt has failed; default 10 min.
    :param network: what the agent can reach: its ``model`` alone (the default), or what the worker
        can (``open``).
    :param prompt_contract: whether the prompt ends in a statement of the step's contract.
    """

    id: Name
    prompt: Text
    context: dict[str, Any] = {}
    output: Annotated[Output, BeforeValidator(_output)] | None = None
    changes: Literal["required", "allowed", "forbidden"] | None = None
    paths: Paths | None = None
    verify: Annotated[list[Command], BeforeValidator(_one_or_list)] = []
    depends_on: Annotated[list[Text], BeforeValidator(_one_or_list)] = []

    @model_validator(mode="after")
    def _one_model(self) -> "Step":
        if self.model is not None and any(agent.model for agent in self.agent or ()):
            raise ValueError("the model is given twice; keep 'model' here or under 'agent'")
        return self


class Workflow(_Strict):
    """A workflow: what it needs, and its steps.

    :param name: the workflow's name, its DAG's id and the stem of its file.
    :param description: one line for lists of workflows.
    :param tags: words to filter workflows by.
    :param schedule: a cron expression or a preset such as ``@daily``; default on demand only.
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
    schedule: str | None = None
    params: dict[str, dict[str, Any]] = {}
    repository: Annotated[Repository, BeforeValidator(_repository)] | None = None
    setup: Setup | None = None
    budget: Budget | None = None
    defaults: Defaults | None = None
    steps: Annotated[list[Step], Field(min_length=1)]
