"""An attempt whose agent program runs on this worker."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_agent_provider.agents.contract import (
    Access,
    AgentEvent,
    AgentResult,
    AgentSession,
    AgentTask,
    EventKind,
    Session,
    usage_of,
)
from airflow_agent_provider.agents.failures import AgentFailed, Interrupted
from airflow_agent_provider.hooks.agent import LocalAgentHook
from airflow_agent_provider.operators.attempt import Attempt, Work
from airflow_agent_provider.operators.record import redact
from airflow_agent_provider.operators.transcript import Transcript

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_agent_provider.operators.agent import AgentOperator

#: While an agent works, its work is kept at most this often, in seconds.
CHECKPOINT_SECONDS = 30.0
#: An attempt that lost its step and has not ended after this many seconds ends its process.
LOST_GRACE_SECONDS = 20.0


class LocalAttempt(Attempt):
    """Runs the agent's program beside the task and watches it.

    :param operator: the step.
    :param context: Airflow's context of the task.
    """

    def __init__(self, operator: AgentOperator, context: Context) -> None:
        super().__init__(operator, context)
        self._agent: AgentSession | None = None
        self._lost: Interrupted | None = None
        self._files: Mapping[str, Path] = {}
        self._kept_at: float | None = None
        self._transcript = Transcript(
            lambda number, content: self._put_segment(number, content), redact, self.log
        )

    def work(self) -> Work:
        """Let the agent work until it says that it is done."""
        hook = self.hook
        if not isinstance(hook, LocalAgentHook):
            raise AgentFailed(f"{hook.spec.title} has no program that runs on a worker")
        prompt = self._restore()
        self._raise_if_lost()
        with hook.start(self._task(prompt)) as agent:
            self._agent = agent
            try:
                result = self._follow(agent.turn(prompt, output_schema=self._answer_schema()))
            finally:
                # Read before the program ends, kept by whoever writes the next checkpoint.
                self.session = agent.session or self.session
                self._files = dict(agent.portable_files())
                self._agent = None
                self._transcript.flush()
        self._raise_if_lost()
        self.spent_here = result.usage
        self.model = result.model
        if result.status != "completed":
            raise Interrupted(f"the agent was interrupted: {result.message or result.status}")
        return Work(result, self.spent_here)

    def session_files(self) -> Mapping[str, Path]:
        """Return the agent's portable files, as they are now or were when it ended."""
        return self._agent.portable_files() if self._agent else self._files

    def on_lost(self, lost: Interrupted) -> None:
        """Interrupt the agent, and end the process if it does not end by itself."""
        super().on_lost(lost)
        self._lost = lost
        self.stop()
        timer = threading.Timer(LOST_GRACE_SECONDS, self._end_process)
        timer.daemon = True
        timer.start()

    def stop(self) -> None:
        """Interrupt the agent; callable from any thread."""
        if self._agent is not None:
            self._agent.interrupt()

    def _end_process(self) -> None:
        if self._agent is not None:
            self._agent.close()
        # Whoever waited for this process is gone or has given the step away.
        os._exit(1)

    def _follow(self, events: Generator[AgentEvent, None, AgentResult]) -> AgentResult:
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                result: AgentResult = end.value
                return result
            self._raise_if_lost()
            self._transcript.add(event)
            if event.kind is EventKind.USAGE:
                self.spent_here += usage_of(event)
            if self._agent:
                self.session = self._agent.session or self.session
            if event.completes_tool:
                self._checkpoint_now_and_then(event)

    def _checkpoint_now_and_then(self, event: AgentEvent) -> None:
        now = time.monotonic()
        if self._kept_at is None or now - self._kept_at >= CHECKPOINT_SECONDS:
            self.save_checkpoint(event.text.strip()[:60] or "work")
            self._kept_at = now

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _restore(self) -> str:
        """Make the session's home; return the prompt, which says if it continues earlier work."""
        shutil.rmtree(self.workspace.home, ignore_errors=True)
        self.workspace.home.mkdir(parents=True, mode=0o700)
        kept = self.checkpoint
        if kept is None:
            return self.prompt_text
        if kept.session and kept.resumable and kept.session_files:
            for path, uri in kept.session_files.items():
                file = self.workspace.home / path
                file.parent.mkdir(parents=True, exist_ok=True)
                self.inputs.fetch(uri, file)
            self.session = Session(self.operator.agent, kept.session)
        elif kept.commit is None:
            return self.prompt_text
        return self.continuing_prompt

    def _task(self, prompt: str) -> AgentTask:
        operator = self.operator
        return AgentTask(
            prompt=prompt,
            workspace=self.workspace.path,
            home=self.workspace.home,
            access=Access(operator.access),
            model=operator.model or None,
            output_schema=self._answer_schema(),
            session=self.session,
            limits=self.limits,
            options=operator.options,
        )

    def _answer_schema(self) -> Any:
        # With an output file, the file is what the schema judges, not the final answer.
        return None if self.operator.output_path else self.inputs.output_schema()

    def _put_segment(self, number: int, content: bytes) -> None:
        self.lease.check()
        self.record.put(f"transcript/{number:04d}.jsonl", content)
