"""The step in which a coding agent works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_agent_provider.agents.registry import AGENTS
from airflow_agent_provider.operators.step import StepOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_agent_provider.operators.agent_attempt import AgentAttempt
    from airflow_agent_provider.operators.work import AgentChoice


class AgentOperator(StepOperator):
    """Let a coding agent work in the run's repository; see also :class:`StepOperator`.

    :param agent: the agent's name, ``codex`` or ``cursor``; its subclasses know theirs.
    :param fallbacks: the agents that go on, in this order, where the ones before are unavailable:
        each a mapping of ``agent``, ``model``, ``agent_conn_id`` and ``options``.
    :param prompt: name of a template (ends in ``.md``, ``.txt``, ``.j2`` or ``.jinja2``), an
        ``s3://`` URL of one, or the template's text.
    :param prompt_context: more names for the template, as ``{{ context.<name> }}``; templated.
    :param model: the vendor's model name.
    :param agent_conn_id: connection of the agent; None takes the agent's default one.
    :param options: settings of this agent alone, as its hook documents them.
    :param repair: how often an agent is told in its session what is wrong with its work.
    :param budget_usd: USD that the whole run may spend; None for no bound.
    :param budget_tokens: tokens that the whole run may read and write; None for no bound.
    :param prompt_contract: whether the prompt ends in the section that states the step's contract.
    :param deferrable: whether a hosted agent is awaited in the triggerer, without a worker slot.
    """

    template_fields: Sequence[str] = (
        *StepOperator.template_fields,
        "prompt",
        "prompt_context",
        "model",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"prompt": "md", "prompt_context": "json"}
    rendered_late: ClassVar[tuple[str, ...]] = (
        *StepOperator.rendered_late,
        "prompt",
        "prompt_context",
    )

    default_agent: ClassVar[str | None] = None

    def __init__(
        self,
        *,
        agent: str | None = None,
        fallbacks: Sequence[Mapping[str, Any]] = (),
        prompt: str,
        prompt_context: Mapping[str, Any] | None = None,
        model: str | None = None,
        agent_conn_id: str | None = None,
        options: Mapping[str, Any] | None = None,
        repair: int = 2,
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        prompt_contract: bool = True,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        name = agent or self.default_agent
        for each in (name, *(fallback.get("agent") for fallback in fallbacks)):
            if each not in AGENTS:
                raise ValueError(
                    f"step {kwargs.get('task_id')!r}: no agent is called {each!r}; "
                    f"there are: {', '.join(sorted(AGENTS))}"
                )
        super().__init__(**kwargs)
        self.agent = str(name)
        self.fallbacks = tuple(fallbacks)
        self.prompt = prompt
        self.prompt_context = dict(prompt_context or {})
        self.model = model
        self.agent_conn_id = agent_conn_id
        self.options = dict(options or {})
        self.repair = repair
        self.budget_usd = budget_usd
        self.budget_tokens = budget_tokens
        self.prompt_contract = prompt_contract
        self.deferrable = deferrable

    @property
    def item(self) -> Any:
        """What the prompt is given."""
        return self.prompt_context

    def new_attempt(self, context: Context, event: dict[str, Any] | None = None) -> AgentAttempt:
        """Return a new attempt.

        :param event: what the trigger told, for the second half of one that was deferred.
        """
        from airflow_agent_provider.operators.agent_attempt import AgentAttempt

        return AgentAttempt(self, context, event)

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

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on with an attempt that waited for its vendor in the triggerer.

        :param event: what the trigger told.
        """
        self._attempt = attempt = self.new_attempt(context, event)
        return attempt.run()

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
        return self.new_attempt(context).run_failed(failure)
