"""What Copilot may do, asked by its program before each tool call.

In the box the file system itself holds the agent back, and this says so in words that the model
understands. Without the box this is all that does.
"""

from __future__ import annotations

from typing import Any

from airflow_agent_provider.agents.contract import Access, AgentTask, Network


class Judge:
    """Answers the permission requests of one session.

    :param task: what its agent is asked to do.
    :param boxed: whether the agent's program runs in the box.
    """

    def __init__(self, task: AgentTask, boxed: bool) -> None:
        self._task = task
        self._boxed = boxed
        self._folders = tuple(folder.resolve() for folder in (task.workspace, task.home))

    def __call__(self, request: Any, _invocation: Any) -> Any:
        """Return the SDK's decision on a request."""
        from copilot.rpc import PermissionDecisionApproveOnce, PermissionDecisionReject

        refusal = self.refusal(request)
        if refusal is None:
            return PermissionDecisionApproveOnce()
        return PermissionDecisionReject(feedback=refusal)

    def refusal(self, request: Any) -> str | None:
        """Return why a request is refused, for the model to read; None if it is granted."""
        kind = str(getattr(request.kind, "value", request.kind))
        ask = {
            "read": self._read,
            "write": self._write,
            "shell": self._shell,
            "url": self._url,
        }.get(kind)
        if ask is None:
            return f"This workflow step allows no request of the kind {kind!r}."
        return ask(request)

    def _read(self, request: Any) -> str | None:
        return None if self._boxed or self._within(request.path) else self._outside(request.path)

    def _write(self, request: Any) -> str | None:
        if self._task.access is Access.READ_ONLY:
            return "This workflow step may only read: change no file."
        return None if self._within(request.file_name) else self._outside(request.file_name)

    def _shell(self, _: Any) -> str | None:
        if self._task.access is Access.READ_ONLY and not self._boxed:
            return "This workflow step may only read, and run no command: use the other tools."
        return None

    def _url(self, _: Any) -> str | None:
        if self._task.confinement.network is Network.OPEN:
            return None
        return "This workflow step has no network."

    def _within(self, path: str) -> bool:
        # Links are followed: one in the workspace may lead anywhere.
        place = (self._task.workspace / path).resolve()
        return any(place.is_relative_to(folder) for folder in self._folders)

    def _outside(self, path: str) -> str:
        return f"{path} is outside of the workspace {self._task.workspace}; stay inside."
