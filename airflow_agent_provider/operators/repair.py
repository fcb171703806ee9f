"""What an agent is told in its session when its work is found wanting, or its time runs out."""

from __future__ import annotations

from airflow_agent_provider.agents.contract import Access
from airflow_agent_provider.agents.failures import (
    AgentFailure,
    OutputInvalid,
    PolicyViolation,
    VerificationFailed,
)

WRAP_UP = """\
The time for this step is nearly over. Start nothing new. Bring what you have into a state that is
worth keeping: no half-written file, and what the step must leave written as far as it goes. Then
say in a few sentences what is done and what is still missing, and stop.
"""

_REPAIR = """\
The work was looked at, and is not accepted yet:

{fault}
{words}
Mend exactly this, in the same workspace, and keep what is good. Then end as the step asked.
"""

_WORDS = """
Its output ended in:

```
{raw}
```
"""


def can_repair(fault: AgentFailure, access: str) -> bool:
    """Return whether the agent can be told and mend it.

    :param fault: what was found wanting.
    :param access: the step's access: what a read-only step has changed is a breach in any case.
    """
    if isinstance(fault, PolicyViolation):
        return access != Access.READ_ONLY.value
    return isinstance(fault, OutputInvalid | VerificationFailed)


def repair_prompt(fault: AgentFailure) -> str:
    """Return the prompt that tells an agent exactly what is wrong."""
    words = _WORDS.format(raw=fault.raw) if fault.raw else ""
    return _REPAIR.format(fault=fault.reason, words=words)
