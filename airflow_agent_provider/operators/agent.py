"""The step in which a coding agent works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

from airflow_agent_provider.agents.contract import Access, Network
from airflow_agent_provider.agents.registry import AGENTS, STEP_OPERATOR_NAME
from airflow_agent_provider.operators.retry import FailureClassRetryPolicy

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

    from airflow_agent_provider.operators.attempt import Attempt
    from airflow_agent_provider.operators.work import AgentChoice

#: Seconds between the step's own timeout and Airflow's, which cuts off what should be done by then.
TIMEOUT_GRACE = 120


class AgentOperator(BaseOperator):
    """Let a coding agent work in the run's repository.

    The step's workspace is the commit of its upstream steps; what the agent changed becomes one
    commit on the run's branch. XCom carries the step's results (see ``docs``), and later prompts
    read them as ``{{ steps.<id>.output }}``.

    :param agent: the agent's name, ``codex`` or ``cursor``; its subclasses know theirs.
    :param fallbacks: the agents that go on, in this order, where the ones before are unavailable:
        each a mapping of ``agent``, ``model``, ``agent_conn_id`` and ``options``.
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
    :param repository: URL or path of the git repository; empty for a new empty one per run.
        What a template makes of it has to match ``[agents] repositories``.
    :param own_repository: what ``repository`` may become unasked, where it is a template.
    :param ref: branch, tag or commit to start from; empty takes the repository's default branch.
    :param repository_conn_id: connection of type ``git`` for a private repository.
    :param timeout: time for one attempt.
    :param stall: time without a sign of life after which an attempt counts as stalled.
    :param verify: shell commands that are run in the workspace, and must succeed.
    :param repair: how often an agent is told in its session what is wrong with its work.
    :param changes: ``required``, ``allowed`` or ``forbidden``; None allows what the access does.
    :param allow_paths: patterns of the paths that may be changed; empty allows all.
    :param deny_paths: patterns of the paths that may not be changed.
    :param network: what the agent and the checks reach: ``model`` or ``open``.
    :param retry_on: failure classes that are retried; None for all that a retry can help.
    :param budget_usd: USD that the whole run may spend; None for no bound.
    :param budget_tokens: tokens that the whole run may read and write; None for no bound.
    :param setup_commands: shell commands that make the workspace ready, with the network open.
    :param setup_files: files of the workspace that decide what the setup installs.
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
        fallbacks: Sequence[Mapping[str, Any]] = (),
        prompt: str,
        prompt_folders: Sequence[str] = (),
        prompt_context: Mapping[str, Any] | None = None,
        access: str = Access.WRITE.value,
        output_path: str | None = None,
        output_schema: Mapping[str, Any] | str | None = None,
        model: str | None = None,
        agent_conn_id: str | None = None,
        options: Mapping[str, Any] | None = None,
        repository: str = "",
        own_repository: str = "",
        ref: str = "",
        repository_conn_id: str | None = None,
        timeout: timedelta = timedelta(hours=1),
        stall: timedelta = timedelta(minutes=10),
        verify: Sequence[str] = (),
        repair: int = 2,
        changes: str | None = None,
        allow_paths: Sequence[str] = (),
        deny_paths: Sequence[str] = (),
        network: str = Network.MODEL.value,
        retry_on: Sequence[str] | None = None,
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        setup_commands: Sequence[str] = (),
        setup_files: Sequence[str] = (),
        prompt_contract: bool = True,
        deferrable: bool = True,
        definition_sha256: str = "",
        **kwargs: Any,
    ) -> None:
        name = agent or self.default_agent
        for each in (name, *(fallback.get("agent") for fallback in fallbacks)):
            if each not in AGENTS:
                raise ValueError(
                    f"step {kwargs.get('task_id')!r}: no agent is called {each!r}; "
                    f"there are: {', '.join(sorted(AGENTS))}"
                )
        kwargs.setdefault("retry_policy", FailureClassRetryPolicy(retry_on))
        kwargs.setdefault("execution_timeout", timeout + timedelta(seconds=TIMEOUT_GRACE))
        super().__init__(**kwargs)
        self.agent = str(name)
        self.fallbacks = tuple(fallbacks)
        self.prompt = prompt
        self.prompt_folders = tuple(prompt_folders)
        self.prompt_context = dict(prompt_context or {})
        self.access = Access(access).value
        self.output_path = output_path
        self.output_schema = output_schema
        self.model = model
        self.agent_conn_id = agent_conn_id
        self.options = dict(options or {})
        self.repository = repository
        self.own_repository = own_repository
        self._named_repository = repository
        self.ref = ref
        self.repository_conn_id = repository_conn_id
        self.timeout = timeout
        self.stall = stall
        self.verify = tuple(verify)
        self.repair = repair
        self.changes = changes
        self.allow_paths = tuple(allow_paths)
        self.deny_paths = tuple(deny_paths)
        self.network = Network(network).value
        self.retry_on = None if retry_on is None else tuple(retry_on)
        self.budget_usd = budget_usd
        self.budget_tokens = budget_tokens
        self.setup_commands = tuple(setup_commands)
        self.setup_files = tuple(setup_files)
        self.prompt_contract = prompt_contract
        self.deferrable = deferrable
        self.definition_sha256 = definition_sha256
        self._attempt: Attempt | None = None

    @property
    def choices(self) -> list[AgentChoice]:
        """The step's agents, in their order."""
        from airflow_agent_provider.operators.work import AgentChoice

        first = AgentChoice(self.agent, self.model or None, self.agent_conn_id, self.options)
        others = (
            AgentChoice(
                agent=fallback["agent"],
                model=fallback.get("model") or None,
                conn_id=fallback.get("agent_conn_id"),
                options=fallback.get("options") or {},
            )
            for fallback in self.fallbacks
        )
        return [first, *others]

    @property
    def repository_is_given(self) -> bool:
        """Whether the run names the repository, and not the DAG's author."""
        return self.repository not in ("", self._named_repository, self.own_repository)

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
        return self._new_attempt(context).run()

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on with an attempt that waited for its vendor in the triggerer.

        :param event: what the trigger told.
        """
        return self._new_attempt(context, event).run()

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
        return self._new_attempt(context).run_failed(failure)

    def on_kill(self) -> None:
        """End the agent when the task is killed."""
        if self._attempt is not None:
            self._attempt.stop()

    def _new_attempt(self, context: Context, event: dict[str, Any] | None = None) -> Attempt:
        # Imported late, so that parsing a DAG costs nothing of it.
        from airflow_agent_provider.operators.attempt import Attempt

        self._attempt = Attempt(self, context, event)
        return self._attempt
