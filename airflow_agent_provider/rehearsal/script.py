"""The rehearsal script: what the scripted model does in each step of a workflow.

.. code-block:: yaml

    steps:
      plan:
        - write: {path: docs/plan.md, content: "# Plan"}
        - say: The plan is in docs/plan.md.
      implement:
        - fail: {status: 503, times: 2}
        - run: python -m pytest -q
        - say: Done.

A resumed session goes on with the action after the last one that ran to its end; a fresh session
starts over. After its last ``say``, a step says that again in every further turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Write(_Strict):
    """Write a file of the workspace.

    :param path: path below the workspace.
    :param content: the whole new text.
    """

    path: str
    content: str


class Fail(_Strict):
    """Answer a request as a vendor in trouble does.

    For an agent on the worker the request is one to its model. For a hosted agent it is whichever
    comes next, to start a run or to look at one; ``drop`` carries out what starts a run and loses
    the answer, and ``hang`` or ``silence`` let the run go on without an end until it is cancelled.

    :param status: HTTP status; None to fail in ``how``'s way.
    :param how: what happens instead of an answer: ``drop`` cuts the stream, ``silence`` begins it
        and says nothing more, ``hang`` never answers, ``refuse`` closes the connection unread,
        ``error`` ends the run as failed: in the stream, or before it where the vendor never tells
        that code in a stream.
    :param code: the vendor's error code in the body, such as ``insufficient_quota``. OpenAI's codes
        do for Anthropic too: what that vendor says in their place, a spent quota as status 400.
    :param message: the vendor's words in the body.
    :param retry_after: seconds, sent as the Retry-After header.
    :param times: how many requests fail before the script goes on; None for all of them. An
        agent that repeats failed requests by itself, as Codex does, uses up several.
    """

    status: int | None = None
    how: Literal["status", "drop", "silence", "hang", "refuse", "error"] = "status"
    code: str = ""
    message: str = ""
    retry_after: float | None = None
    times: int | None = 1


class Action(_Strict):
    """One thing that the scripted model does. Exactly one of the fields is given.

    :param write: write a file, with the agent's own tool.
    :param run: run a shell command in the workspace, with the agent's own tool.
    :param say: end the turn with this message; a mapping or list is sent as JSON.
    :param fail: answer a request with a failure.
    """

    write: Write | None = None
    run: str | None = None
    say: Any = None
    fail: Annotated[
        Fail | None, BeforeValidator(lambda v: {"status": v} if isinstance(v, int) else v)
    ] = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Action:
        if len(self.model_fields_set) != 1:
            raise ValueError("an action is exactly one of write, run, say and fail")
        return self


class Script(_Strict):
    """What the scripted model does.

    :param steps: the actions of each step, by step id; ``*`` serves steps that are not named.
    """

    steps: dict[str, list[Action]] = Field(default_factory=dict)

    def actions(self, step_id: str) -> list[Action]:
        """Return the actions of a step, ending in a ``say``."""
        actions = self.steps.get(step_id, self.steps.get("*", []))
        if actions and actions[-1].say is not None:
            return actions
        return [*actions, Action(say="Done.")]


class ScriptError(ValueError):
    """A rehearsal script that cannot be used; the text says where and why."""


def load_script(path: Path) -> Script:
    """Read a rehearsal script.

    :raises ScriptError: if the file is missing, not YAML or not a script.
    """
    try:
        return Script.model_validate(yaml.safe_load(path.read_text()) or {})
    except OSError as error:
        raise ScriptError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ScriptError(f"{path}: is not YAML: {error}") from error
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(map(str, item['loc'])) or 'script'}: {item['msg']}"
            for item in error.errors()
        ]
        raise ScriptError("\n".join(lines)) from error
