"""The names that a step's templates may use, declared once.

Those who make the values are held to them by the type checker; the DAG factory checks templates
against them before anything runs.
"""

from __future__ import annotations

from typing import Any, TypedDict


class EarlyRunNames(TypedDict):
    """What ``run`` holds before the step has a workspace, as in its ``when``.

    :param id: Airflow's run id.
    :param branch: the run's branch.
    """

    id: str
    branch: str


class RunNames(EarlyRunNames):
    """What ``run`` holds where the step has a workspace.

    :param base: the commit that the run starts from.
    :param start: the commit that the step starts from.
    """

    base: str
    start: str


class WorkflowNames(TypedDict):
    """What ``workflow`` holds.

    :param name: the workflow's name.
    :param step: the step's id.
    """

    name: str
    step: str


class EarlyNames(TypedDict):
    """The names of a template before the step has a workspace, beside Airflow's own."""

    params: Any
    steps: Any
    run: EarlyRunNames | RunNames
    workflow: WorkflowNames


class LateNames(EarlyNames):
    """The names of a template where the step has a workspace, beside Airflow's own.

    :param file: returns the text of a file of the workspace.
    """

    file: Any


class StepValues(TypedDict):
    """A step's results, as they stand in XCom and as ``steps.<id>`` holds them.

    :param status: always ``success``: a step that failed leaves no results.
    :param output: its output, or a reference to it.
    :param output_path: the file that the output was read from, if any.
    :param commit: the commit of its work.
    :param base: the commit that the run started from.
    :param branch: the branch that was pushed, if any.
    :param agent: who did it.
    :param model: the vendor's model, if known.
    :param session: the vendor's id of the conversation, if any.
    :param attempt: the number of the attempt, from 1.
    :param usage: tokens of all of the step's attempts.
    :param cost: USD of all of the step's attempts, None if unknown.
    :param artifacts: URIs by name.
    """

    status: str
    output: Any
    output_path: str | None
    commit: str
    base: str
    branch: str | None
    agent: str
    model: str | None
    session: str | None
    attempt: int
    usage: dict[str, int]
    cost: float | None
    artifacts: dict[str, str]


class ResultNames(StepValues):
    """What ``steps.<id>`` holds of a step that works in the run's repository.

    :param patch: what the step changed, as a patch.
    """

    patch: str


class AnswerNames(TypedDict):
    """The output of an approval.

    :param approved: whether the answer is yes.
    :param option: what was chosen.
    :param by: who chose it, if known.
    :param comment: what was said to it, if anything.
    """

    approved: bool
    option: str
    by: str | None
    comment: str | None


class ApprovalValues(TypedDict):
    """An approval's results, as they stand in XCom and as ``steps.<id>`` holds them.

    :param status: ``success`` or ``rejected``.
    :param output: the answer.
    :param attempt: the number of the attempt, from 1.
    :param agent: ``approval``.
    :param artifacts: URIs by name.
    """

    status: str
    output: AnswerNames
    attempt: int
    agent: str
    artifacts: dict[str, str]
