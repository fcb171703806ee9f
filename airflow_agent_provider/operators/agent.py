"""The step in which a coding agent works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

from airflow_agent_provider.agents.contract import Access
from airflow_agent_provider.agents.registry import AGENTS, STEP_OPERATOR_NAME
from airflow_agent_provider.operators.retry import FailureClassRetryPolicy

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

    from airflow_agent_provider.operators.hosted import HostedAttempt
    from airflow_agent_provider.operators.local import LocalAttempt

#: Seconds between the step's own timeout and Airflow's, which cuts off what should be done by then.
TIMEOUT_GRACE = 120


class AgentOperator(BaseOperator):
    """Let a coding agent work in the run's repository.

    The step's workspace is the commit of its upstream steps; what the agent changed becomes one
    commit on the run's branch. XCom carries the step's results (see ``docs``), and later prompts
    read them as ``{{ steps.<id>.output }}``.

    :param agent: the agent's name, ``codex`` or ``cursor``; its subclasses know theirs.
    :param prompt: name of a template (ends in ``.md``, ``.txt``, ``.j2`` or ``.jinja2``), an
        ``s3://`` URL of one, or the template's text.
    :param prompt_folders: where template and schema names are looked up, in this order; the DAG
        file's folder where empty.
    :param prompt_context: more names for the template, as ``{{ context.<name> }}``; templated.
    :param access: ``write`` or ``read_only``.
    :param output_path: file of the workspace that the agent must write; without it the final
        answer is the output.
    :param output_schema: JSON schema of the output, or the name of a file with it.
    :param model: the vendor's model name.
    :param agent_conn_id: connection of the agent; None takes the agent's default one.
    :param options: settings of this agent alone, as its hook documents them.
    :param fallbacks: the agents that take over, in this order, where the one before cannot serve;
        each with ``agent``, ``model``, ``agent_conn_id`` and ``options``.
    :param verify: shell commands that must succeed on what the agent left.
    :param repair: how often the agent is told, in the same session, what its work fails on before
        the attempt has failed.
    :param changes: ``required``, ``allowed`` or ``forbidden``; None for ``allowed``, or
        ``forbidden`` where the access is ``read_only``.
    :param allow_paths: patterns of the files that may change; empty for all.
    :param deny_paths: patterns of the files that may not change, the allowed ones included.
    :param network: ``model`` or ``open``: what the agent can reach.
    :param retry_on: failure classes after which there is a retry; None for all that it can help.
    :param budget_usd: USD that the run may spend, all of its steps and attempts together.
    :param budget_tokens: tokens that the run may spend.
    :param setup_commands: shell commands that make the workspace ready before the agent starts.
    :param setup_files: files of the workspace that decide what the set-up leaves.
    :param repository: URL or path of the git repository; empty for a new empty one per run.
    :param ref: branch, tag or commit to start from; empty takes the repository's default branch.
    :param repository_conn_id: connection of type ``git`` for a private repository.
    :param timeout: time for one attempt.
    :param stall: time without a sign of life after which an attempt counts as stalled.
    :param prompt_contract: whether the prompt ends in the section that states the step's contract.
    :param deferrable: whether a hosted agent is awaited in the triggerer, without a worker slot.
    :param definition_sha256: digest of what defines the step; a change makes a new DAG version.
    """

    template_fields: Sequence[str] = (
        "prompt",
        "prompt_context",
        "repository",
        "ref",
        "model",
        "definition_sha256",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"prompt": "md", "prompt_context": "json"}
    ui_color = "#e8e4f8"
    #: What Airflow shows as the operator; the mirror knows steps by its beginning.
    custom_operator_name: ClassVar[str] = STEP_OPERATOR_NAME
    #: Shows the resolved prompt in place of the template.
    overwrite_rtif_after_execution = True

    default_agent: ClassVar[str | None] = None

    def __init__(
        self,
        *,
        agent: str | None = None,
        prompt: str,
        prompt_folders: Sequence[str] = (),
        prompt_context: Mapping[str, Any] | None = None,
        access: str = Access.WRITE.value,
        output_path: str | None = None,
        output_schema: Mapping[str, Any] | str | None = None,
        model: str | None = None,
        agent_conn_id: str | None = None,
        options: Mapping[str, Any] | None = None,
        fallbacks: Sequence[Mapping[str, Any]] = (),
        verify: Sequence[str] = (),
        repair: int = 2,
        changes: str | None = None,
        allow_paths: Sequence[str] = (),
        deny_paths: Sequence[str] = (),
        network: str = "model",
        retry_on: Sequence[str] | None = None,
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        setup_commands: Sequence[str] = (),
        setup_files: Sequence[str] = (),
        repository: str = "",
        ref: str = "",
        repository_conn_id: str | None = None,
        timeout: timedelta = timedelta(hours=1),
        stall: timedelta = timedelta(minutes=10),
        prompt_contract: bool = True,
        deferrable: bool = True,
        definition_sha256: str = "",
        **kwargs: Any,
    ) -> None:
        name = agent or self.default_agent
        if name not in AGENTS:
            raise ValueError(
                f"step {kwargs.get('task_id')!r}: no agent is called {name!r}; "
                f"there are: {', '.join(sorted(AGENTS))}"
            )
        kwargs.setdefault("retry_policy", FailureClassRetryPolicy())
        kwargs.setdefault("execution_timeout", timeout + timedelta(seconds=TIMEOUT_GRACE))
        super().__init__(**kwargs)
        self.agent = name
        self.prompt = prompt
        self.prompt_folders = tuple(prompt_folders)
        self.prompt_context = dict(prompt_context or {})
        self.access = Access(access).value
        self.output_path = output_path
        self.output_schema = output_schema
        self.model = model
        self.agent_conn_id = agent_conn_id
        self.options = dict(options or {})
        self.fallbacks = tuple(dict(fallback) for fallback in fallbacks)
        self.verify = tuple(verify)
        self.repair = repair
        self.changes = changes
        self.allow_paths = tuple(allow_paths)
        self.deny_paths = tuple(deny_paths)
        self.network = network
        self.retry_on = None if retry_on is None else tuple(retry_on)
        self.budget_usd = budget_usd
        self.budget_tokens = budget_tokens
        self.setup_commands = tuple(setup_commands)
        self.setup_files = tuple(setup_files)
        self.repository = repository
        self.ref = ref
        self.repository_conn_id = repository_conn_id
        self.timeout = timeout
        self.stall = stall
        self.prompt_contract = prompt_contract
        self.deferrable = deferrable
        self.definition_sha256 = definition_sha256
        self._attempt: LocalAttempt | HostedAttempt | None = None

    def render_template_fields(
        self, context: Context, jinja_env: jinja2.Environment | None = None
    ) -> None:
        """Render what needs no workspace; the prompt and its context follow in :meth:`execute`.

        Only there are the workspace and the results of earlier steps at hand, and an error can
        name the template's own file and line.
        """
        env = jinja_env or self.get_template_env()
        later = ("prompt", "prompt_context")
        fields = [name for name in self.template_fields if name not in later]
        self._do_render_template_fields(self, fields, context, env, set())

    def execute(self, context: Context) -> dict[str, Any]:
        """Run one attempt of the step; return its results, as they stand in XCom.

        :raises AgentFailure: of exactly one failure class.
        """
        self._attempt = self._new_attempt(context)
        return self._attempt.run()

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on with an attempt that waited for its vendor in the triggerer.

        :param event: what the trigger told.
        """
        from airflow_agent_provider.operators.hosted import HostedAttempt

        self._attempt = attempt = HostedAttempt(self, context)
        return attempt.resume(event)

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> Any:
        """Resume as Airflow says; a trigger that ended without an event is a classified failure.

        Airflow calls this with ``__fail__`` then, and would raise an error without a cause.
        """
        if next_method != "__fail__":
            return super().resume_execution(next_method, next_kwargs, context)
        from airflow_agent_provider.operators.hosted import trigger_failure

        values = next_kwargs or {}
        failure = trigger_failure(str(values.get("error", "")), values.get("traceback"))
        self._attempt = self._new_attempt(context)
        return self._attempt.run_failed(failure)

    def on_kill(self) -> None:
        """End the agent when the task is killed."""
        if self._attempt is not None:
            self._attempt.stop()

    def _new_attempt(self, context: Context) -> LocalAttempt | HostedAttempt:
        # Imported late, so that parsing a DAG costs nothing of it.
        if AGENTS[self.agent].capabilities.hosted:
            from airflow_agent_provider.operators.hosted import HostedAttempt

            return HostedAttempt(self, context)
        from airflow_agent_provider.operators.local import LocalAttempt

        return LocalAttempt(self, context)
