"""What Copilot may do, by the requests that its SDK makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_agent_provider.agents.contract import Access, AgentTask, Confinement, Network
from airflow_agent_provider.hooks.copilot_permissions import Judge


def request(kind: str, **values: Any) -> Any:
    """Return the request as the SDK makes it from the wire."""
    from copilot.generated.session_events import _load_PermissionRequest

    common = {"intention": "x", "canOfferSessionApproval": False}
    shell = {"commands": [], "possiblePaths": [], "possibleUrls": [], "hasWriteFileRedirection": 0}
    shell["hasWriteFileRedirection"] = False
    return _load_PermissionRequest({"kind": kind, **common, **shell, **values})


@pytest.fixture
def task(tmp_path: Path) -> AgentTask:
    workspace, home = tmp_path / "tree", tmp_path / "home"
    workspace.mkdir()
    home.mkdir()
    (workspace / "link").symlink_to(tmp_path)
    return AgentTask("x", workspace, home)


def changed(task: AgentTask, **values: Any) -> AgentTask:
    from dataclasses import replace

    return replace(task, **values)


def write(path: object) -> Any:
    return request("write", fileName=str(path), diff="")


def read(path: object) -> Any:
    return request("read", path=str(path))


SHELL = {"fullCommandText": "make"}


@pytest.mark.parametrize("boxed", [True, False])
def test_writes_stay_inside(task: AgentTask, boxed: bool) -> None:
    judge = Judge(task, boxed)
    for path in (task.workspace / "a", task.workspace / "new/b", task.home / "c", "relative"):
        assert judge.refusal(write(path)) is None
    for path in ("/etc/passwd", "../outside", task.workspace / "link/x", task.workspace / "../x"):
        assert "outside of the workspace" in (judge.refusal(write(path)) or "")


def test_reads_stay_inside_where_there_is_no_box(task: AgentTask) -> None:
    assert Judge(task, boxed=True).refusal(read("/usr/include/x.h")) is None
    judge = Judge(task, boxed=False)
    assert judge.refusal(read(task.workspace / "a")) is None
    assert judge.refusal(read("/etc/passwd"))
    assert judge.refusal(read(task.workspace / "link" / "secret"))


def test_read_only(task: AgentTask) -> None:
    only = changed(task, access=Access.READ_ONLY)
    for boxed in (True, False):
        judge = Judge(only, boxed)
        assert judge.refusal(write(task.workspace / "a"))
        assert judge.refusal(read(task.workspace / "a")) is None
        # In the box, the file system lets no command write.
        assert (judge.refusal(request("shell", **SHELL)) is None) is boxed
    assert Judge(task, boxed=False).refusal(request("shell", **SHELL)) is None


def test_the_network(task: AgentTask) -> None:
    url = request("url", url="https://example.org")
    assert Judge(task, boxed=True).refusal(url)
    network = changed(task, confinement=Confinement(network=Network.OPEN))
    assert Judge(network, boxed=True).refusal(url) is None


def test_what_nobody_has_set_up_is_refused(task: AgentTask) -> None:
    mcp = request("mcp", serverName="s", toolName="t", toolTitle="T", readOnly=True, args={})
    assert "'mcp'" in (Judge(task, boxed=True).refusal(mcp) or "")


def test_the_answer_is_the_sdks(task: AgentTask) -> None:
    judge = Judge(task, boxed=True)
    assert judge(read(task.workspace), {}).to_dict() == {"kind": "approve-once"}
    refused = judge(write("/etc/passwd"), {}).to_dict()
    assert refused["kind"] == "reject"
    assert "/etc/passwd is outside" in refused["feedback"]
