"""What the sessions of all local agents have in common: the box, the bounds, the honest end."""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, TypeVar

from airflow_agent_provider.agents.contract import AgentEvent, AgentSession, AgentTask, EventKind
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    RateLimited,
    Stalled,
    TimedOut,
)
from airflow_agent_provider.agents.model_errors import failure_of_answer
from airflow_agent_provider.agents.watch import Overdue, Standing, watched
from airflow_agent_provider.sandbox.box import Box, Program, open_box
from airflow_agent_provider.sandbox.door import Upstream

Event = TypeVar("Event")
Session = TypeVar("Session", bound="LocalSession")

#: Seconds for an agent's program to start, to open a session and to begin a turn, each.
START_SECONDS = 60.0
#: Seconds by which a session's files may lag behind its events (measured on an idle machine: 0.1).
LAG_SECONDS = 0.3


class LocalSession(AgentSession):
    """An agent's program at work for one task, in its box.

    A subclass starts the program by :attr:`box`'s wrapper, follows its turns, and says what the
    exceptions of its vendor's SDK are.

    :param task: what the agent is asked to do.
    """

    #: The agent's name in the registry.
    agent: ClassVar[str]
    #: The agent's name for users.
    title: ClassVar[str]

    def __init__(self, task: AgentTask) -> None:
        self._task = task
        #: What the user should read, told with the next turn's events.
        self._notices: list[str] = []
        self._announced = False
        self._box: Box | None = None

    @property
    def task(self) -> AgentTask:
        """What the agent is asked to do."""
        return self._task

    @property
    def box(self) -> Box:
        """The box, once it is open."""
        if self._box is None:
            raise RuntimeError("the session's box is not open")
        return self._box

    @property
    def boxed(self) -> bool:
        """Whether the program runs inside the box."""
        return self.box.boxed

    @abstractmethod
    def open(self) -> None:
        """Open the box, start the program in it, and open the conversation.

        :raises AgentFailure: if one of these cannot be.
        """

    def settle(self, call: AgentEvent) -> bool:
        """Wait until the call's end is written down; see :meth:`AgentSession.settle`.

        The base knows no program's files, and only gives it time.
        """
        time.sleep(LAG_SECONDS)
        return False

    def close(self) -> None:
        """End the program, whatever it started, and its box, within seconds."""
        try:
            self._end()
        finally:
            if self._box is not None:
                self._box.close()

    @abstractmethod
    def _end(self) -> None:
        """Let the program end by itself, within seconds; what is left then is killed."""

    @abstractmethod
    def _classify(self, error: Exception, doing: str) -> AgentFailure:
        """Return the failure that an exception of the vendor's SDK is.

        :param error: the exception.
        :param doing: ``start`` or ``turn``.
        """

    def _open_box(self, program: Program, upstream: Upstream) -> Box:
        self._box = open_box(self._task, program, upstream)
        if not self._box.boxed:
            self._notices.append(
                f"{self.title} runs without the sandbox: [agents] sandbox is "
                f"{self._task.confinement.sandbox.value}"
            )
        return self._box

    def _tell(self) -> Iterator[AgentEvent]:
        """Yield what is to be told before a turn: the notices, and the session if it is known."""
        notices, self._notices = self._notices, []
        for notice in notices:
            yield AgentEvent(EventKind.NOTICE, notice)
        yield from self._announce()

    def _announce(self) -> Iterator[AgentEvent]:
        """Yield the session's event, once, as soon as the session can be resumed."""
        session = self.session
        if session is not None and not self._announced:
            self._announced = True
            yield AgentEvent(EventKind.SESSION, session.id, data={"agent": session.agent})

    def _patience(self) -> float:
        """Return the seconds that a call of the SDK may take now.

        :raises TimedOut: if the attempt's time is over.
        """
        left = self._task.limits.remaining
        if left <= 0:
            raise TimedOut(f"the attempt's timeout of {self._task.limits.timeout:g} s is over")
        return min(START_SECONDS, left)

    def _watch(
        self,
        events: Iterable[Event],
        *,
        trouble: Callable[[Event], AgentFailure | None] = lambda _: None,
        patience: float = 120.0,
    ) -> Iterator[Event]:
        """Yield a turn's events within the task's limits; see :func:`.watch.watched`."""
        return watched(
            events,
            self._task.limits,
            self.interrupt,
            trouble=trouble,
            standing=self._standing,
            patience=patience,
        )

    def _standing(self) -> Standing | None:
        """Return what the door saw last, where it was a failure: agents may hide it."""
        door = self._box.door if self._box is not None else None
        last = door.last_failure if door is not None else None
        if last is None:
            return None
        failure = failure_of_answer(last.status, last.words, last.retry_after)
        return Standing(failure, last.since, last.at)

    @contextlib.contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        """Let no exception of the SDK out: raise the failure that it is.

        :param doing: ``start`` or ``turn``.
        """
        try:
            yield
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except AgentFailure as failure:
            failure = self._explained(self._with_wait(failure))
            raise self._box_failure() or failure from failure.__cause__
        except Overdue as error:
            raise self._box_failure() or self._overdue(error) from error
        except Exception as error:
            raise self._box_failure() or self._classify(error, doing) from error

    def _with_wait(self, failure: AgentFailure) -> AgentFailure:
        """Return a rate limit with the seconds to wait that the door has seen the vendor say."""
        door = self._box.door if self._box is not None else None
        last = door.last_failure if door is not None else None
        if not isinstance(failure, RateLimited) or failure.retry_after is not None or last is None:
            return failure
        return RateLimited(failure.reason, raw=failure.raw, retry_after=last.retry_after)

    def _explained(self, failure: AgentFailure) -> AgentFailure:
        """Return ``failure`` with a reason that names the next step, where the subclass knows one.

        The base knows none.
        """
        return failure

    def _box_failure(self) -> AgentFailure | None:
        # Whatever the program's end looks like: it was the box that ended it.
        return self._box.violation if self._box is not None else None

    def _overdue(self, error: Overdue) -> AgentFailure:
        if self._task.limits.remaining <= 0:
            return TimedOut(f"the attempt's timeout of {self._task.limits.timeout:g} s is over")
        return Stalled(f"{self.title} does not answer: {error}")


def opened(session: Session) -> Session:
    """Open a session and return it; one that cannot be opened is closed again.

    :raises AgentFailure: if it cannot be opened.
    """
    if not session.task.workspace.is_dir():
        raise AgentFailed(f"the workspace {session.task.workspace} is not there")
    try:
        session.open()
    except BaseException:
        session.close()
        raise
    return session


def unclassified(title: str, error: BaseException) -> AgentFailed:
    """Return the failure of an exception that no rule knows, with the vendor's words."""
    return AgentFailed(f"{title} failed", raw=f"{type(error).__name__}: {error}")
