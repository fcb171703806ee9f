"""What a retry continues from: the work so far, the agent's session and what they were made for."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Spent(_Values):
    """What the attempts before cost: tokens, and USD where it is known."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None


class Finished(_Values):
    """An agent's answer that was judged good, before the step could tell Airflow.

    :param message: the final message.
    :param structured: the final message as JSON values, if a schema was asked for.
    :param model: the model that answered, if the vendor said.
    """

    message: str
    structured: Any = None
    model: str | None = None


class Checkpoint(_Values):
    """The point from which a later attempt continues; JSON in Airflow's task state store.

    :param attempt: the number of the attempt that wrote it.
    :param clear_number: how often the run had been cleared by then.
    :param started: when that attempt began, UTC.
    :param prompt_sha256: digest of the resolved prompt.
    :param start: the commit that the step began with.
    :param item_sha256: digest of the mapped item, empty for a step that is not mapped.
    :param agent: the agent's name.
    :param commit: the work so far; None while nothing was changed.
    :param bundle: URI of the git bundle with ``commit``.
    :param session: the vendor's id of the conversation.
    :param session_files: URIs of the session's portable files, by their path below its home.
    :param hosted_agent: the vendor's id of a hosted agent.
    :param hosted_run: the vendor's id of its run.
    :param rejected_run: id of the hosted run whose result was judged and found wanting.
    :param repairs: how often the agent was told what is wrong, in the attempt that wrote it.
    :param problem: why the attempt failed, if it did: the next one tells the agent.
    :param failure_class: the class of that failure.
    :param resumable: whether the conversation may be continued; the work is kept either way.
    :param finished: the agent's answer, once it is judged good.
    :param spent: tokens and cost of all attempts so far.
    """

    attempt: int
    clear_number: int = 0
    started: datetime | None = None
    prompt_sha256: str
    start: str
    item_sha256: str = ""
    agent: str
    commit: str | None = None
    bundle: str | None = None
    session: str | None = None
    session_files: dict[str, str] = {}
    hosted_agent: str | None = None
    hosted_run: str | None = None
    rejected_run: str | None = None
    repairs: int = 0
    problem: str | None = None
    failure_class: str | None = None
    resumable: bool = True
    finished: Finished | None = None
    spent: Spent = Spent()

    def mismatch(self, other: Checkpoint) -> str | None:
        """Return why an attempt that would write ``other`` cannot continue from here, or None.

        State survives clears, so a checkpoint may belong to another prompt, other upstream work
        or another mapped item; and a step that succeeded and was cleared is meant to be redone.
        """
        if self.prompt_sha256 != other.prompt_sha256:
            return "the prompt has changed"
        if self.start != other.start:
            return "the upstream work has changed"
        if self.item_sha256 != other.item_sha256:
            return "the mapped item has changed"
        if self.finished and self.clear_number != other.clear_number:
            return "the step had succeeded and was cleared"
        return None


def read_checkpoint(value: object) -> Checkpoint | None:
    """Return the checkpoint that the task state store holds; None if it holds none that we know."""
    if not isinstance(value, dict):
        return None
    try:
        return Checkpoint.model_validate(value)
    except ValidationError:
        return None
