"""The step in which a person decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param

from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

#: What is chosen by who does not want the run to go on.
REJECT = "Reject"
#: What is chosen by who does, unless the step names other options.
APPROVE = "Approve"
#: The field of Airflow's form in which a person says why.
COMMENT = "comment"


class ApproveOperator(HITLOperator):
    """Ask a person in Airflow's UI whether the run shall go on.

    The step's output is the answer: ``approved``, ``option``, ``by`` and ``comment``. While it
    waits it takes no worker slot. Unlike Airflow's own ApprovalOperator, a rejection leaves it to
    the trigger rules of the steps that follow whether they run.

    :param subject: the question, a template.
    :param body: what helps to decide, a Markdown template; None shows the outputs, changes and
        costs of the steps before.
    :param options: what may be chosen; each but :data:`REJECT`, which is always there, approves.
    :param assignees: ids of Airflow's users who may answer; empty lets everybody who may.
    :param response_timeout: how long an answer is waited for; None waits for ever.
    :param on_reject: what a rejection does: ``fail`` the step for good, ``skip`` it, or let the run
        ``continue`` with ``approved`` false.
    :param when: template of one expression; where it is false, nobody is asked.
    :param prompt_folders: where templates that these include are looked up.
    :param definition_sha256: digest of what defines the step; a change makes a new DAG version.
    """

    template_fields: Sequence[str] = ("when", "subject", "body", "definition_sha256")
    template_fields_renderers: ClassVar[dict[str, str]] = {"body": "md"}
    ui_color = "#f8efd8"
    custom_operator_name: ClassVar[str] = f"{STEP_OPERATOR_NAME} (approval)"

    def __init__(
        self,
        *,
        subject: str,
        body: str | None = None,
        options: Sequence[str] = (APPROVE,),
        assignees: Sequence[str] = (),
        on_reject: Literal["fail", "skip", "continue"] = "fail",
        when: str | None = None,
        prompt_folders: Sequence[str] = (),
        definition_sha256: str = "",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retries", 0)
        super().__init__(
            subject=subject,
            body=body,
            options=[*(option for option in options if option != REJECT), REJECT],
            assigned_users=[{"id": user, "name": user} for user in assignees] or None,
            params={COMMENT: Param("", type=["string", "null"], title="Comment")},
            **kwargs,
        )
        self.on_reject = on_reject
        self.when = when
        self.prompt_folders = tuple(prompt_folders)
        self.definition_sha256 = definition_sha256

    def render_template_fields(
        self, context: Context, jinja_env: jinja2.Environment | None = None
    ) -> None:
        """Render nothing yet: :meth:`execute` does, with the names that steps have."""

    def execute(self, context: Context) -> None:
        """Put the question, and wait.

        :raises TaskAwaitingInput: for Airflow, which wakes the step when there is an answer.
        :raises AirflowSkipException: if the step's ``when`` is false.
        :raises InvalidDefinition: if a template cannot be rendered.
        """
        from airflow_agent_provider.operators.approval_record import Approval

        with Approval(self, context) as approval:
            self.subject, self.body = approval.question()
            super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Return the answer, as it stands in XCom.

        :raises PolicyViolation: if the answer is no, and that fails the step.
        :raises AirflowSkipException: if the answer is no, and that skips the step.
        :raises TimedOut: if there was none in time.
        """
        from airflow_agent_provider.operators.approval_record import Approval

        with Approval(self, context) as approval:
            if event.get("error_type") == "timeout":
                raise approval.nobody_answered()
            return approval.result(super().execute_complete(context, event))
