"""What an approval shows to the person who decides, and what it leaves of the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from airflow_agent_provider.agents.failures import (
    AgentFailure,
    PolicyViolation,
    TimedOut,
    failure_to_dict,
)
from airflow_agent_provider.agents.outcome import Outcome
from airflow_agent_provider.agents.template_names import AnswerNames, ApprovalValues
from airflow_agent_provider.hooks.artifacts import open_store
from airflow_agent_provider.operators.approval import COMMENT, REJECT
from airflow_agent_provider.operators.attempt import FAILURE, OUTCOME
from airflow_agent_provider.operators.record import Record, attempt_key, redact, redact_values
from airflow_agent_provider.operators.steps import StepResult
from airflow_agent_provider.operators.templates import StepTemplates
from airflow_agent_provider.settings import load_settings

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_agent_provider.operators.approval import ApproveOperator

#: Who works in an approval, as the outcome names it.
WHO = "approval"
#: Characters of an output, and of the changes, that the question shows by itself.
_SHOWN_OUTPUT = 4000
_SHOWN_PATCH = 12_000


class Approval(AbstractContextManager["Approval"]):
    """One approval of a run: its question and its answer.

    A failure that leaves the context is recorded, as an attempt's is.

    :param operator: the step.
    :param context: Airflow's context of the task.
    """

    def __init__(self, operator: ApproveOperator, context: Context) -> None:
        settings = load_settings()
        self._operator = operator
        self._context = context
        self._started = datetime.now(UTC)
        self._answer: AnswerNames | None = None
        self._key = attempt_key(context["ti"])
        store = open_store(settings.artifacts, settings.aws_conn_id)
        self._record = Record(store, self._key)
        self._templates = StepTemplates(operator, context, self._key.step, store)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(error, AgentFailure):
            return
        told = redact_values(failure_to_dict(error))
        self._context["ti"].xcom_push(key=FAILURE, value=told)
        self._write_outcome("failed", failure=told)

    # --- the question ----------------------------------------------------------------------

    def question(self) -> tuple[str, str]:
        """Return the subject and the body that the person sees.

        :raises AirflowSkipException: if the step's ``when`` is false.
        :raises PromptError: if a template cannot be rendered.
        """
        operator, step_id = self._operator, self._key.step.step_id
        if not self._templates.wanted():
            raise AirflowSkipException(f"{operator.when} is false")
        renderer = self._templates.renderer(self._templates.names(None))
        subject = renderer.value(operator.subject, f"'subject' of step {step_id}")
        if operator.body is None:
            body = "\n\n".join(_shown(name, result) for name, result in self._before())
        else:
            body = renderer.value(operator.body, f"'body' of step {step_id}")
        return redact(subject), redact(body)

    def _before(self) -> Iterator[tuple[str, StepResult]]:
        """Yield the steps right before this one that have a result, with it."""
        steps = self._templates.steps()
        for name in sorted(self._operator.upstream_task_ids):
            if isinstance(self._templates.pull(name), Mapping):
                yield name, steps[name]

    # --- the answer ------------------------------------------------------------------------

    def result(self, response: Mapping[str, Any]) -> dict[str, Any]:
        """Return the step's XCom, and leave the answer for the mirror.

        :param response: what Airflow tells of the answer.
        :raises PolicyViolation: if it is no, and that fails the step.
        :raises AirflowSkipException: if it is no, and that skips the step.
        """
        self._answer = answer = _answer(response)
        values: ApprovalValues = {
            "status": "success" if answer["approved"] else "rejected",
            "output": answer,
            "attempt": self._key.number,
            "agent": WHO,
            "artifacts": {},
        }
        result = dict(values)
        if answer["approved"] or self._operator.on_reject == "continue":
            self._write_outcome("success")
            return result
        # Airflow keeps no result of a step that is skipped or fails.
        self._context["ti"].xcom_push(key="return_value", value=result)
        said = f": {answer['comment']}" if answer["comment"] else ""
        reason = f"{answer['by'] or 'somebody'} rejected it{said}"
        if self._operator.on_reject == "skip":
            self._write_outcome("skipped")
            raise AirflowSkipException(reason)
        raise PolicyViolation(reason)

    def nobody_answered(self) -> TimedOut:
        """Return the failure of an approval whose time is over."""
        waited = self._operator.response_timeout
        return TimedOut(f"nobody answered within {waited}; clear the step to ask again")

    def _write_outcome(self, state: str, *, failure: dict[str, Any] | None = None) -> None:
        step = self._key.step
        outcome = Outcome(
            dag_id=step.dag_id,
            run_id=step.run_id,
            step=step.step_id,
            map_index=step.map_index,
            attempt=self._key.number,
            state=state,
            failure=failure,
            agent=WHO,
            answer=redact_values(self._answer),
            cost=0.0,
            started=self._started,
            ended=datetime.now(UTC),
        )
        self._record.put(OUTCOME, outcome.to_json())


def _answer(response: Mapping[str, Any]) -> AnswerNames:
    option = str(response["chosen_options"][0])
    user = response.get("responded_by_user") or {}
    comment = (response.get("params_input") or {}).get(COMMENT)
    return {
        "approved": option != REJECT,
        "option": option,
        "by": user.get("name") or user.get("id"),
        "comment": comment or None,
    }


def _shown(name: str, result: StepResult) -> str:
    """Return what a step left, in Markdown: its output, its changes, and what it cost."""
    output = result.get("output")
    text = output if isinstance(output, str) else _fenced("json", json.dumps(output, indent=2))
    parts = [f"### {name}", _cut(text, _SHOWN_OUTPUT)]
    if patch := result.get("patch"):
        parts.append(_fenced("diff", _cut(patch, _SHOWN_PATCH)))
    cost = result.get("cost")
    if "usage" in result:
        tokens = (result["usage"] or {}).get("total_tokens", 0)
        price = "unknown" if cost is None else f"{cost:.2f} USD"
        parts.append(f"Cost: {price}, {tokens:,} tokens")
    return "\n\n".join(part for part in parts if part)


def _fenced(language: str, text: str) -> str:
    # Longer than any fence inside, so that what an agent wrote stays in its block.
    longest = max((len(part) for part in text.split("\n") if set(part.strip()) == {"`"}), default=2)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}\n… ({len(text) - most:,} characters more)"
