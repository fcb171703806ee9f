"""What all steps have in common that work in the run's repository."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

from airflow_agent_provider.agents.contract import Access, Network
from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME
from airflow_agent_provider.operators.retry import FailureClassRetryPolicy

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

    from airflow_agent_provider.operators.attempt import Attempt

#: Seconds between the step's own timeout and Airflow's, which cuts off what should be done by then.
TIMEOUT_GRACE = 120


class StepOperator(BaseOperator):
    """A step that works in the run's repository; a subclass says who works.

    The step's workspace is the commit of its upstream steps; what is changed there becomes one
    commit on the run's branch. XCom carries the step's results, and later templates read them as
    ``{{ steps.<id>.output }}``.

    :param when: template of one expression; where it is false, the step is skipped.
    :param prompt_folders: where template and schema names are looked up, in this order; the DAG
        file's folder where empty.
    :param access: ``write`` or ``read_only``.
    :param output_path: file of the workspace that must be written, and is the step's output.
    :param output_schema: JSON schema of the output, or the name of a file with it.
    :param repository: URL or path of the git repository; empty for a new empty one per run.
        What a template makes of it has to match ``[agents] repositories``.
    :param own_repository: what ``repository`` may become all the same, where it is a template.
    :param ref: branch, tag or commit to start from; empty takes the repository's default branch.
    :param repository_conn_id: connection of type ``git`` for a private repository.
    :param submodules: whether the workspace holds the files of submodules, to read.
    :param lfs: whether files that git-lfs manages have their content there, to read.
    :param sparse: patterns of the repository's files that the workspace holds; empty for all.
    :param timeout: time for one attempt.
    :param stall: time without a sign of life after which an attempt counts as stalled.
    :param verify: shell commands that are run in the workspace, and must succeed.
    :param changes: ``required``, ``allowed`` or ``forbidden``; None allows what the access does.
    :param allow_paths: patterns of the paths that may be changed; empty allows all.
    :param deny_paths: patterns of the paths that may not be changed.
    :param network: what is reached from the workspace: ``model`` or ``open``.
    :param retry_on: failure classes that are retried; None for all that a retry can help.
    :param setup_commands: shell commands that make the workspace ready, with the network open.
    :param setup_files: files of the workspace that decide what the setup installs.
    :param definition_sha256: digest of what defines the step; a change makes a new DAG version.
    """

    template_fields: Sequence[str] = ("when", "repository", "ref", "definition_sha256")
    ui_color = "#e8e4f8"
    #: What Airflow shows as the operator; the mirror knows steps by its beginning.
    custom_operator_name: ClassVar[str] = STEP_OPERATOR_NAME
    #: Shows what was resolved in place of the templates.
    overwrite_rtif_after_execution = True

    #: Template fields that are rendered in :meth:`execute`. Only there are the workspace and the
    #: results of earlier steps at hand, and an error can name the template's own file and line.
    rendered_late: ClassVar[tuple[str, ...]] = ("when",)

    def __init__(
        self,
        *,
        when: str | None = None,
        prompt_folders: Sequence[str] = (),
        access: str = Access.WRITE.value,
        output_path: str | None = None,
        output_schema: Mapping[str, Any] | str | None = None,
        repository: str = "",
        own_repository: str = "",
        ref: str = "",
        repository_conn_id: str | None = None,
        submodules: bool = False,
        lfs: bool = False,
        sparse: Sequence[str] = (),
        timeout: timedelta = timedelta(hours=1),
        stall: timedelta = timedelta(minutes=10),
        verify: Sequence[str] = (),
        changes: str | None = None,
        allow_paths: Sequence[str] = (),
        deny_paths: Sequence[str] = (),
        network: str = Network.MODEL.value,
        retry_on: Sequence[str] | None = None,
        setup_commands: Sequence[str] = (),
        setup_files: Sequence[str] = (),
        definition_sha256: str = "",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", FailureClassRetryPolicy(retry_on))
        kwargs.setdefault("execution_timeout", timeout + timedelta(seconds=TIMEOUT_GRACE))
        super().__init__(**kwargs)
        self.when = when
        self.prompt_folders = tuple(prompt_folders)
        self.access = Access(access).value
        self.output_path = output_path
        self.output_schema = output_schema
        self.repository = repository
        self.own_repository = own_repository
        self._written_repository = repository
        self.ref = ref
        self.repository_conn_id = repository_conn_id
        self.submodules = submodules
        self.lfs = lfs
        self.sparse = tuple(sparse)
        self.timeout = timeout
        self.stall = stall
        self.verify = tuple(verify)
        self.changes = changes
        self.allow_paths = tuple(allow_paths)
        self.deny_paths = tuple(deny_paths)
        self.network = Network(network).value
        self.retry_on = None if retry_on is None else tuple(retry_on)
        self.setup_commands = tuple(setup_commands)
        self.setup_files = tuple(setup_files)
        self.definition_sha256 = definition_sha256
        self._attempt: Attempt | None = None

    @property
    @abstractmethod
    def item(self) -> Any:
        """What a mapped step's instance differs in from the others, JSON."""

    @property
    def repository_is_given(self) -> bool:
        """Whether the run names the repository, and not the DAG's author."""
        return self.repository not in ("", self._written_repository, self.own_repository)

    @abstractmethod
    def new_attempt(self, context: Context) -> Attempt:
        """Return a new attempt at the step; its modules are imported here, not at DAG parse."""

    def render_template_fields(
        self, context: Context, jinja_env: jinja2.Environment | None = None
    ) -> None:
        """Render what needs no workspace; :attr:`rendered_late` follows in :meth:`execute`."""
        env = jinja_env or self.get_template_env()
        fields = [name for name in self.template_fields if name not in self.rendered_late]
        self._do_render_template_fields(self, fields, context, env, set())

    def execute(self, context: Context) -> dict[str, Any]:
        """Run one attempt of the step; return its results, as they stand in XCom.

        :raises AgentFailure: of exactly one failure class.
        :raises AirflowSkipException: if the step's ``when`` is false.
        """
        self._attempt = self.new_attempt(context)
        return self._attempt.run()

    def on_kill(self) -> None:
        """End the work when the task is killed."""
        if self._attempt is not None:
            self._attempt.stop()
