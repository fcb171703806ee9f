"""What a definition asks of its agents: that there are such, and that each can do what it is asked.

Each agent of a list has to: any of them may be the one that does the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from airflow_agent_provider.agents.contract import AgentCapabilities
from airflow_agent_provider.agents.registry import AGENTS, AgentSpec
from dag_factory.definition import LATER_KINDS
from dag_factory.errors import Fault, Path, nearest, show
from dag_factory.parts import RawStep, as_mapping, as_text, reads_only


def check_agents(workflow: dict[str, Any], steps: list[RawStep]) -> Iterator[Fault]:
    """Yield what is wrong with the agents of a workflow's steps.

    :param workflow: the workflow's values.
    :param steps: its steps.
    """
    defaults, budget = as_mapping(workflow.get("defaults")), as_mapping(workflow.get("budget"))
    shared = _named(defaults.get("agent"), ("defaults", "agent"))
    yield from _check_names(shared)
    for step in steps:
        if not step.is_agents:
            continue
        given = step.values.get("agent")
        own = _named(given, (*step.path, "agent"))
        yield from _check_names(own)
        if given is None and defaults.get("agent") is None:
            yield from _check_kind(step)
        agents = shared if given is None else own
        yield from _check_model(step, defaults, agents)
        for agent in agents:
            if agent.spec is not None:
                able = agent.spec.able(as_mapping(agent.values.get("options")))
                yield from _check_read_only(step, defaults, agent, able)
                yield from _check_answer(step, defaults, agent, able)
                yield from _check_budget(budget, agent, able)


class _Named(NamedTuple):
    """An agent that a definition names.

    :param path: the way to it.
    :param name: its name.
    :param values: what else is said of it.
    """

    path: Path
    name: str
    values: dict[str, Any]

    @property
    def spec(self) -> AgentSpec | None:
        return AGENTS.get(self.name)

    @property
    def title(self) -> str:
        return AGENTS[self.name].title


def _named(value: Any, path: Path) -> list[_Named]:
    """Return the agents that a value of the key ``agent`` names."""
    items: list[tuple[Path, Any]] = [(path, value)]
    if isinstance(value, list):
        items = [((*path, index), item) for index, item in enumerate(value)]
    return [
        _Named(at, name, as_mapping(item))
        for at, item in items
        if (name := as_text(item.get("name") if isinstance(item, dict) else item))
    ]


def _check_names(agents: list[_Named]) -> Iterator[Fault]:
    known: set[tuple[str, str]] = set()
    for agent in agents:
        if agent.spec is None:
            at = (*agent.path, "name") if agent.values else agent.path
            yield Fault(at, f"unknown agent {show(agent.name)}; {nearest(agent.name, AGENTS)}")
            continue
        same = (agent.name, as_text(agent.values.get("connection")) or agent.spec.connection)
        if same in known:
            said = f"{show(agent.name)} is named twice, with the same connection; remove one"
            yield Fault(agent.path, said)
        known.add(same)


def _check_kind(step: RawStep) -> Iterator[Fault]:
    if LATER_KINDS.union(("pick",)).isdisjoint(step.values):
        agents = ", ".join(sorted(AGENTS))
        said = f"step {show(step.id)} has no agent; name one here or under 'defaults': {agents}"
        yield Fault(step.path, said)


def _check_model(step: RawStep, defaults: dict[str, Any], agents: list[_Named]) -> Iterator[Fault]:
    """Yield that a model beside the agents is given for those of different vendors."""
    without = [agent for agent in agents if agent.values.get("model") is None]
    if not without or len({agent.name for agent in agents}) < 2:
        return
    said = "one 'model' for different agents; give it to those of the list that know it"
    if step.values.get("model") is not None:
        # Where an agent has a model too, it is an error already that there are two.
        if len(without) == len(agents):
            yield Fault((*step.path, "model"), said)
    elif defaults.get("model") is not None:
        own = step.values.get("agent") is not None
        yield Fault((*step.path, "agent") if own else ("defaults", "model"), said)


def _check_read_only(
    step: RawStep, defaults: dict[str, Any], agent: _Named, able: AgentCapabilities
) -> Iterator[Fault]:
    if not reads_only(step, defaults) or able.read_only:
        return
    # Where nothing in the step says so, the whole step is shown.
    at = agent.path if step.values.get("agent") is not None else step.path
    if step.values.get("access") is not None:
        at = (*step.path, "access")
    advice = f"give it 'access: write'{_or_agent('read_only')}"
    yield Fault(at, f"{agent.title} cannot work read-only; {advice}")


def _check_answer(
    step: RawStep, defaults: dict[str, Any], agent: _Named, able: AgentCapabilities
) -> Iterator[Fault]:
    output = as_mapping(step.values.get("output"))
    # Without a file, and where none can be written, the final answer itself has to be structured.
    answers = output.get("schema") is not None and (
        output.get("path") is None or reads_only(step, defaults)
    )
    if answers and not able.structured_output:
        said = (
            f"{agent.title} gives no structured answer; "
            f"add a 'path' that it writes the output to{_or_agent('structured_output')}"
        )
        yield Fault((*step.path, "output", "schema"), said)


def _check_budget(
    budget: dict[str, Any], agent: _Named, able: AgentCapabilities
) -> Iterator[Fault]:
    """Yield what a budget counts that the agent does not report; its tokens can be priced."""
    if budget.get("usd") is not None and not able.cost and not able.usage:
        said = f"{agent.title} reports neither cost nor tokens, which the budget's 'usd' counts"
        yield Fault(agent.path, f"{said}; remove 'usd'{_or_agent('cost', 'usage')}")
    if budget.get("tokens") is not None and not able.usage:
        said = f"{agent.title} reports no tokens, which the budget's 'tokens' counts"
        yield Fault(agent.path, f"{said}; remove 'tokens'{_or_agent('usage')}")


def _or_agent(*capabilities: str) -> str:
    """Return the end of an error's advice: the agents that can do one of these."""
    able = [
        name
        for name, spec in sorted(AGENTS.items())
        if any(getattr(spec.capabilities, capability) for capability in capabilities)
    ]
    *others, last = able or [""]
    named = f"{', '.join(others)} or {last}" if others else last
    return f", or take the agent {named}" if named else ""
