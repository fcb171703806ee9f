"""An agent whose program runs on this worker."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_agent_provider.agents.contract import (
    AgentEvent,
    AgentResult,
    AgentSession,
    AgentTask,
    EventKind,
    Session,
    usage_of,
)
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    Interrupted,
    TimedOut,
)
from airflow_agent_provider.agents.registry import AGENTS
from airflow_agent_provider.hooks.agent import AgentHook, LocalAgentHook
from airflow_agent_provider.operators.record import redact
from airflow_agent_provider.operators.repair import WRAP_UP, can_repair, repair_prompt
from airflow_agent_provider.operators.transcript import Transcript
from airflow_agent_provider.operators.work import AgentChoice, AgentWork, Work
from airflow_agent_provider.workspace.cleanup import discard

if TYPE_CHECKING:
    from airflow_agent_provider.operators.agent_attempt import AgentAttempt
    from airflow_agent_provider.operators.judge import Verdict

#: While an agent works, its work is kept at most this often, in seconds.
CHECKPOINT_SECONDS = 30.0
#: The part of the timeout after which the agent is asked to wrap up.
WRAP_UP_SHARE = 0.9
#: An attempt that lost its step and has not ended after this many seconds ends its process.
LOST_GRACE_SECONDS = 20.0


class LocalWork(AgentWork):
    """Runs the agent's program beside the task and watches it.

    :param attempt: the attempt that it is part of.
    :param choice: which agent, and how.
    :param hook: the agent's hook.
    """

    hosted: ClassVar[bool] = False

    def __init__(self, attempt: AgentAttempt, choice: AgentChoice, hook: AgentHook) -> None:
        super().__init__(attempt, choice, hook)
        self.log = attempt.log
        self._session: AgentSession | None = None
        self._lost: Interrupted | None = None
        self._files: Mapping[str, Path] = {}
        self._kept_at: float | None = None
        self._wrapped_up = False
        self._transcript = Transcript(attempt.put_segment, redact, self.log)

    def work(self) -> Work:
        """Let the agent work until what it left is found good."""
        prompt = self._restore()
        self._raise_if_lost()
        with self._start(prompt) as session:
            self._session = session
            self.attempt.boxed = session.boxed
            try:
                return self._work(session, prompt)
            finally:
                # Read before the program ends, kept by whoever writes the next checkpoint.
                self.attempt.session = session.session or self.attempt.session
                self._files = dict(session.portable_files())
                self._session = None
                self._transcript.flush()

    def session_files(self) -> Mapping[str, Path]:
        """Return the agent's portable files, as they are now or were when it ended."""
        return self._session.portable_files() if self._session else self._files

    def on_lost(self, lost: Interrupted) -> None:
        """Interrupt the agent, and end the process if it does not end by itself."""
        self._lost = lost
        self.stop()
        timer = threading.Timer(LOST_GRACE_SECONDS, self._end_process)
        timer.daemon = True
        timer.start()

    def stop(self) -> None:
        """Interrupt the agent; callable from any thread."""
        if self._session is not None:
            self._session.interrupt()

    def _start(self, prompt: str) -> AgentSession:
        hook = self.hook
        if not isinstance(hook, LocalAgentHook):
            raise AgentFailed(f"{hook.spec.title} has no program that runs on a worker")
        return hook.start(self._task(prompt))

    def _end_process(self) -> None:
        if self._session is not None:
            self._session.close()
        # Whoever waited for this process is gone or has given the step away.
        os._exit(1)

    # --- turns -----------------------------------------------------------------------------

    def _work(self, session: AgentSession, prompt: str) -> Work:
        answer = self._turn_to_its_end(session, prompt)
        for round_ in range(1, self.attempt.operator.repair + 1):
            try:
                return Work(answer, self._judge(answer))
            except AgentFailure as fault:
                if not can_repair(fault, self.attempt.operator.access) or self._is_late():
                    raise
                self.log.warning("Repair round %d: %s", round_, fault)
                self.attempt.save_checkpoint(f"before repair round {round_}")
                self.attempt.ledger.check()
                answer = self._turn_to_its_end(session, repair_prompt(fault))
        return Work(answer, self._judge(answer))

    def _judge(self, answer: AgentResult) -> Verdict:
        if not self._wrapped_up:
            return self.attempt.judge(answer)
        over = TimedOut(
            f"{WRAP_UP_SHARE:.0%} of the attempt's timeout of {self.attempt.limits.timeout:g} s "
            "were over before the agent was done; it has wrapped up, and the next attempt goes on"
        )
        if not self.attempt.inputs.rules().proven:
            # Nothing but the agent's word would say that the work is whole.
            raise over
        try:
            return self.attempt.judge(answer)
        except AgentFailure as fault:
            raise over from fault

    def _is_late(self) -> bool:
        return self._wrapped_up or self.attempt.limits.remaining <= 0

    def _turn_to_its_end(self, session: AgentSession, prompt: str) -> AgentResult:
        """Let the agent do a turn, and one more to wrap up if its time is nearly over."""
        with self._reminder(session) as reminded:
            answer = self._turn(session, prompt)
        if answer.status != "completed" and reminded.is_set():
            self._raise_if_lost()
            self.log.warning("The attempt's time is nearly over: the agent is asked to wrap up")
            self.attempt.save_checkpoint("before wrapping up")
            self._wrapped_up = True
            answer = self._turn(session, WRAP_UP)
        self._raise_if_lost()
        if answer.status != "completed":
            raise Interrupted(f"the agent was interrupted: {answer.message or answer.status}")
        self.attempt.model = answer.model or self.attempt.model
        return answer

    def _turn(self, session: AgentSession, prompt: str) -> AgentResult:
        return self._follow(session, session.turn(prompt, output_schema=self._answer_schema()))

    def _reminder(self, session: AgentSession) -> _Reminder:
        limits = self.attempt.limits
        able = AGENTS[self.choice.agent].able(self.choice.options)
        can = able.interrupt and not self._wrapped_up
        left = limits.remaining - (1 - WRAP_UP_SHARE) * limits.timeout
        return _Reminder(session, left if can else None)

    def _follow(
        self, session: AgentSession, events: Generator[AgentEvent, None, AgentResult]
    ) -> AgentResult:
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                result: AgentResult = end.value
                return result
            self._raise_if_lost()
            self._transcript.add(event)
            self.attempt.session = session.session or self.attempt.session
            if event.kind is EventKind.USAGE:
                self.attempt.model = session.model or self.attempt.model
                self.attempt.spend(usage_of(event), metered=session.metered)
            if event.kind is EventKind.SESSION:
                # From here on, whoever comes next can continue the conversation.
                self.attempt.save_session()
            if event.completes_tool:
                self._checkpoint_now_and_then(session, event)

    def _checkpoint_now_and_then(self, session: AgentSession, event: AgentEvent) -> None:
        now = time.monotonic()
        if self._kept_at is None or now - self._kept_at >= CHECKPOINT_SECONDS:
            session.settle(event)
            self.attempt.save_checkpoint(event.text.strip()[:60] or "work")
            self._kept_at = now

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise self._lost

    # --- what it starts from ---------------------------------------------------------------

    def _restore(self) -> str:
        """Make the session's home; return the prompt, which says if it continues earlier work."""
        attempt = self.attempt
        home = attempt.workspace.home
        discard(home)
        home.mkdir(parents=True, mode=0o700)
        kept = attempt.checkpoint
        if kept is None:
            return attempt.prompt_text
        if kept.session and kept.resumable and kept.session_files:
            for path, uri in kept.session_files.items():
                file = home / path
                file.parent.mkdir(parents=True, exist_ok=True)
                attempt.inputs.fetch(uri, file)
            attempt.session = Session(self.choice.agent, kept.session)
        elif kept.commit is None:
            return attempt.prompt_text
        return attempt.continuing_prompt

    def _task(self, prompt: str) -> AgentTask:
        attempt = self.attempt
        return AgentTask(
            prompt=prompt,
            workspace=attempt.workspace.path,
            home=attempt.workspace.home,
            access=attempt.inputs.rules().access,
            model=self.choice.model,
            output_schema=self._answer_schema(),
            session=attempt.session,
            limits=attempt.limits,
            options=self.choice.options,
            confinement=attempt.confinement(attempt.operator.network),
        )

    def _answer_schema(self) -> Any:
        # With an output file, the file is what the schema judges, not the final answer.
        rules = self.attempt.inputs.rules()
        return None if rules.output_path else rules.output_schema


class _Reminder:
    """Interrupts a turn when the time to wrap up has come. A context manager.

    It yields an event that is set when the turn was interrupted for that.

    :param session: the agent.
    :param seconds: until then; None for never.
    """

    def __init__(self, session: AgentSession, seconds: float | None) -> None:
        self._session = session
        self._told = threading.Event()
        self._timer = None
        if seconds is not None:
            self._timer = threading.Timer(max(0.0, seconds), self._remind)
            self._timer.daemon = True

    def __enter__(self) -> threading.Event:
        if self._timer is not None:
            self._timer.start()
        return self._told

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _remind(self) -> None:
        self._told.set()
        self._session.interrupt()
