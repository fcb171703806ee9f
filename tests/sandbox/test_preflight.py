"""Workers on which a box does not work, simulated as they are: what is told, and what follows."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_agent_provider.agents.contract import AgentTask, EventKind, Sandbox
from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.sandbox import box as box_module
from airflow_agent_provider.sandbox import preflight, private
from airflow_agent_provider.sandbox.bounds import Bounds
from airflow_agent_provider.sandbox.box import Program, open_box
from airflow_agent_provider.sandbox.preflight import check

from .conftest import confined

pytestmark = pytest.mark.integration
SECONDS = 120

#: Tries a box, and tells what came of it.
DRIVER = """
import sys
from pathlib import Path
from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.sandbox.bounds import Bounds
from airflow_agent_provider.sandbox.preflight import check

try:
    check("/usr/bin/bwrap", Bounds(Path(sys.argv[1]), writable=[Path(sys.argv[1])]))
except InvalidDefinition as failure:
    print(failure.reason)
    print("RAW", failure.raw)
else:
    print("WORKS")
"""
#: Numbers of calls on x86_64, where they are refused here.
UNSHARE, CLONE, MOUNT, PIVOT_ROOT, CLONE3 = 272, 56, 165, 155, 435
NAMESPACES = 0x7E020000


def driver(folder: Path) -> list[str]:
    return [sys.executable, "-c", DRIVER, str(folder)]


def run(command: list[str], **more: object) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SECONDS, **more
    )  # type: ignore[call-overload]
    return str(done.stdout + done.stderr)


def refusing(calls: dict[int, int]) -> bytes:
    """Return a filter that fails these calls with these errors; of clone, that for namespaces."""

    def word(code: int, value: int, hit: int = 0, miss: int = 0) -> bytes:
        return struct.pack("=HBBI", code, hit, miss, value)

    program = [word(0x20, 0)]
    for number, code in calls.items():
        if number == CLONE:
            program += [word(0x15, number, 0, 4), word(0x20, 16), word(0x45, NAMESPACES, 0, 1)]
            program += [word(0x06, 0x00050000 | code), word(0x20, 0)]
        else:
            program += [word(0x15, number, 0, 1), word(0x06, 0x00050000 | code)]
    return b"".join([*program, word(0x06, 0x7FFF0000)])


def under(calls: dict[int, int], folder: Path) -> str:
    """Try a box where a filter of the container's refuses ``calls``."""
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers of this machine's calls are not known here")
    # Root keeps its rights, so that only the filter makes the difference.
    outer = ["bwrap", "--dev-bind", "/", "/"]
    if os.geteuid() == 0:
        outer += ["--cap-add", "ALL"]
    calls_file = os.memfd_create("calls")
    try:
        os.write(calls_file, refusing(calls))
        os.lseek(calls_file, 0, os.SEEK_SET)
        command = [*outer, "--seccomp", str(calls_file), *driver(folder)]
        return run(command, pass_fds=(calls_file,))
    finally:
        os.close(calls_file)


def test_a_worker_that_can_is_told_so(tmp_path: Path) -> None:
    assert run(driver(tmp_path)) == "WORKS\n"
    assert under({CLONE3: errno.ENOSYS}, tmp_path) == "WORKS\n"


@pytest.mark.parametrize(
    ("calls", "raw", "mend"),
    [
        (
            {UNSHARE: errno.EPERM, CLONE: errno.EPERM, CLONE3: errno.ENOSYS},
            "No permissions to create new namespace",
            "allow user namespaces for the worker",
        ),
        ({MOUNT: errno.EACCES}, "Failed to make / slave", "its AppArmor profile forbids it"),
        ({PIVOT_ROOT: errno.EPERM}, "pivot_root", "let the container pivot_root"),
    ],
)
def test_containers_that_filter_calls(
    tmp_path: Path, calls: dict[int, int], raw: str, mend: str
) -> None:
    said = under(calls, tmp_path)
    assert f"RAW bwrap: {raw}" in said
    assert mend in said.partition("RAW")[0]
    assert "[agents] sandbox = off" in said


def test_a_container_whose_proc_is_masked(tmp_path: Path) -> None:
    masked = 'mount -t tmpfs none /proc/irq && exec "$@"'
    unshare = ["unshare", "--mount"]
    if os.geteuid() != 0:
        unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    said = run([*unshare, "sh", "-c", masked, "sh", *driver(tmp_path)])
    if "mount:" in said or "unshare:" in said:
        pytest.skip("this machine lets no mount be made to try it with")
    assert "RAW bwrap: Can't mount proc" in said
    assert "systempaths=unconfined" in said


def test_root_without_its_rights(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give up its rights")
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    said = run([*drop, *driver(tmp_path)])
    assert "RAW bwrap: setting up uid map" in said
    assert "SETFCAP" in said.partition("RAW")[0]


def test_a_worker_that_may_have_no_more_namespaces(tmp_path: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "/bin/sh", "-c"]
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    said = run([*unshare, forbid, "sh", *driver(tmp_path)])
    if "unshare:" in said or "Permission denied" in said.partition("RAW")[0]:
        pytest.skip("this machine lets no user namespace be made to try it in")
    assert "RAW bwrap: Creating new namespace failed" in said
    assert "user.max_user_namespaces" in said.partition("RAW")[0]


def test_inside_of_another_box(tmp_path: Path) -> None:
    said = run(["bwrap", "--dev-bind", "/", "/", "--unshare-user", "--disable-userns",
                *driver(tmp_path)])  # fmt: skip
    assert "leave the box that the worker itself runs in" in said.partition("RAW")[0]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "the trial ended with 3"),
        ("echo something else >&2; exit 1", "something else"),
        ("echo not-ok", "the trial ended with 0"),
        ("sleep 60", "timed out"),
    ],
)
def test_a_program_that_makes_no_box_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setattr(preflight, "_SECONDS", 1.0)
    stand_in = tmp_path / "bwrap"
    stand_in.write_text(f"#!/bin/sh\n{script}\n")
    stand_in.chmod(0o755)
    with pytest.raises(InvalidDefinition, match="does not work on this worker") as caught:
        check(str(stand_in), Bounds(tmp_path))
    assert words in (caught.value.raw or "")


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (["--unshare-pid"], []),
        (["--remount-ro", "/"], []),
        (["--ro-bind", "/proc/sys", "/proc/sys"], ["root"]),
    ],
)
def test_a_box_with_a_hole_is_no_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: list[str], left: list[str]
) -> None:
    """The trial looks at what matters, and does not only ask whether bwrap ended well."""
    if "root" in left and os.geteuid() != 0:
        pytest.skip("only root's box could write there")
    real = preflight.arguments

    def holed(bounds: Bounds) -> list[str]:
        words = real(bounds)
        for place in range(len(words)):
            if words[place : place + len(change)] == change:
                return words[:place] + words[place + len(change) :]
        raise AssertionError(f"{change} is no longer there")

    monkeypatch.setattr(preflight, "arguments", holed)
    with pytest.raises(InvalidDefinition):
        check("/usr/bin/bwrap", Bounds(tmp_path, writable=[tmp_path]))


def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "bin/bwrap"
    stand_in.parent.mkdir()
    stand_in.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(stand_in.parent), prepend=os.pathsep)
    box_module.works.cache_clear()


def test_required_refuses_auto_falls_back_and_both_say_so(
    task: AgentTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(tmp_path, monkeypatch)
    try:
        # Of this test's own, where no other makes any.
        monkeypatch.setattr(private, "_PARENT", tmp_path)
        with pytest.raises(InvalidDefinition, match="allow user namespaces"):
            open_box(task, Program(("/bin/true",)))
        with open_box(confined(task, sandbox=Sandbox.AUTO), Program(("/bin/true",))) as box:
            assert box.boxed is False
        assert list(tmp_path.glob("agent-box-*")) == []
    finally:
        box_module.works.cache_clear()


def test_a_session_without_the_box_tells_it_in_its_events(
    task: AgentTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_agent_provider.hooks.local_session import LocalSession
    from airflow_agent_provider.sandbox.door import Upstream

    class Session(LocalSession):
        agent = "codex"
        title = "Codex"
        session = None

        def open(self) -> None:
            pass

        def turn(self, prompt: str, *, output_schema: object = None) -> object:  # type: ignore[override]
            raise NotImplementedError

        def interrupt(self) -> None:
            pass

        def portable_files(self) -> dict[str, Path]:  # type: ignore[override]
            return {}

        def _end(self) -> None:
            pass

        def _classify(self, error: Exception, doing: str) -> InvalidDefinition:  # type: ignore[override]
            return InvalidDefinition("x")

    broken(tmp_path, monkeypatch)
    try:
        for sandbox in (Sandbox.AUTO, Sandbox.OFF):
            with Session(confined(task, sandbox=sandbox)) as session:
                session._open_box(Program(("/bin/true",)), Upstream("http://127.0.0.1:9/v1"))
                (notice,) = session._tell()
                assert notice.kind is EventKind.NOTICE
                assert notice.text == (
                    f"Codex runs without the sandbox: [agents] sandbox is {sandbox.value}"
                )
                assert list(session._tell()) == []
    finally:
        box_module.works.cache_clear()
