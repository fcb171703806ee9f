"""Which process of which step is killed when: all of it follows from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Target(StrEnum):
    """What gets the signal."""

    TASK = "task"
    SUPERVISOR = "supervisor"
    BOX = "box"
    PROGRAM = "program"
    TASK_AND_BOX = "task+box"
    TASK_AND_PROGRAM = "task+program"

    @property
    def task(self) -> bool:
        """Whether Airflow's task process is killed."""
        return self in (Target.TASK, Target.TASK_AND_BOX, Target.TASK_AND_PROGRAM)

    @property
    def agent(self) -> bool:
        """Whether the agent is killed by itself: its box, or the program in it."""
        return self not in (Target.TASK, Target.SUPERVISOR)

    @property
    def is_box(self) -> bool:
        """Whether of the agent it is the box."""
        return self in (Target.BOX, Target.TASK_AND_BOX)


#: How often each is chosen. Airflow takes half a minute to miss a supervisor.
_WEIGHTS = {
    Target.TASK: 6,
    Target.SUPERVISOR: 2,
    Target.BOX: 3,
    Target.PROGRAM: 4,
    Target.TASK_AND_BOX: 2,
    Target.TASK_AND_PROGRAM: 3,
}
#: How many kills a run gets.
_COUNTS = (1, 1, 2, 2, 3)
#: Seconds in which a step has begun, worked and ended, more or less.
_STEP_SECONDS = 5.0
_AFTER_LINE_SECONDS = 1.0


@dataclass(frozen=True)
class Kill:
    """One kill.

    :param step: the step.
    :param target: what is killed of its attempt.
    :param line: comes once so many actions have noted that they are done; 0 for as soon as the
        attempt has a process.
    :param delay: seconds after that.
    """

    step: str
    target: Target
    line: int
    delay: float

    def __str__(self) -> str:
        after = f"after {self.line}+" if self.line else "at "
        return f"{self.step.removeprefix('soak-')}: {self.target} {after}{self.delay:.1f} s"


def plan_kills(seed: int, lines: dict[str, int]) -> list[Kill]:
    """Return a run's kills in the order in which they come.

    :param seed: decides.
    :param lines: how many lines the actions of each step note, by step, in their order.
    """
    chance = random.Random(seed)
    steps = list(lines)
    chosen = [chance.choice(steps) for _ in range(chance.choice(_COUNTS))]
    return [_kill(chance, step, lines[step]) for step in sorted(chosen, key=steps.index)]


def _kill(chance: random.Random, step: str, lines: int) -> Kill:
    targets: Sequence[Target] = list(_WEIGHTS)
    (target,) = chance.choices(targets, list(_WEIGHTS.values()))
    line = chance.randint(0, lines)
    longest = _AFTER_LINE_SECONDS if line else _STEP_SECONDS
    return Kill(step, target, line, round(chance.uniform(0.0, longest), 1))
