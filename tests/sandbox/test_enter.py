"""What a program in a box gets from whoever starts it: three streams and a clean environment."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_agent_provider.agents.contract import AgentTask, Network, Sandbox
from airflow_agent_provider.sandbox import box as box_module
from airflow_agent_provider.sandbox.box import Box, Program, open_box
from airflow_agent_provider.sandbox.door import Upstream

from .conftest import SECONDS, Shell, confined, enter, python

pytestmark = pytest.mark.integration

CANARY = "canary-4711"
BOTH = pytest.mark.parametrize("sandbox", [Sandbox.REQUIRED, Sandbox.OFF])


@BOTH
def test_the_environment_is_an_allow_list(
    task: AgentTask, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    for name in ("AIRFLOW__CORE__FERNET_KEY", "AWS_SECRET_ACCESS_KEY", "PLAIN", "LD_PRELOAD_X"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("LANG", "C.UTF-8")
    program = Program(
        ("/usr/bin/env",), environment={"OWN": "1", "HOME": "/elsewhere"}, inherited=("GIVEN",)
    )
    with open_box(confined(task, sandbox=sandbox), program) as box:
        done = enter(box, env={**os.environ, "GIVEN": "by the SDK", "NOT_GIVEN": "x"})
        seen = dict(line.split("=", 1) for line in done.stdout.splitlines())
        assert box.mark == seen.pop("AGENT_SESSION_MARK")
    assert CANARY not in done.stdout
    assert seen["OWN"] == "1"
    assert seen["GIVEN"] == "by the SDK"
    assert seen["LANG"] == "C.UTF-8"
    assert "NOT_GIVEN" not in seen
    assert (seen["HOME"], seen["TMPDIR"]) == (str(task.home), str(task.home / "tmp"))
    assert seen["PATH"].startswith(f"{task.workspace}/.venv/bin:")


def test_no_process_in_the_box_shows_the_workers_environment(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SECRET", CANARY)
    seen = shell("cat /proc/*/environ | tr '\\0' '\\n'")
    assert "AGENT_SESSION_MARK" in seen
    assert CANARY not in seen


def test_a_proxy_is_passed_on_only_where_there_is_a_network(
    task: AgentTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    program = Program(("/bin/sh", "-c", "echo $HTTPS_PROXY $NO_PROXY"))
    for network, expected in (
        (Network.MODEL, "127.0.0.1,localhost"),
        (Network.OPEN, "http://proxy.example:3128 "),
    ):
        with open_box(confined(task, network=network), program) as box:
            assert enter(box).stdout.startswith(expected)


def test_arguments_reach_the_program_as_they_are(task: AgentTask) -> None:
    words = ["two words", "", "$HOME", "'quoted\"", "ünï", "-x", "--", "new\nline"]
    program = Program(("/usr/bin/printf", "%s\\0"))
    with open_box(task, program) as box:
        done = subprocess.run([str(box.wrapper), *words], capture_output=True, timeout=SECONDS)
    assert done.stdout.decode().split("\0")[:-1] == words


def test_the_program_has_the_id_that_its_parent_knows(task: AgentTask) -> None:
    program = Program(("/bin/sh", "-c", "echo ready; exec sleep 600"))
    with open_box(task, program) as box:
        process = subprocess.Popen([str(box.wrapper)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert b"bwrap" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.terminate()
        assert process.wait(SECONDS) == -15
        assert process.stdout.read() == ""
        process.stdout.close()


LIST = "import os\nprint(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1])"


@BOTH
def test_no_descriptor_of_the_worker_is_open_in_the_program(
    task: AgentTask, tmp_path: Path, sandbox: Sandbox
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(CANARY)
    program = Program(("/bin/sh", "-c", python(LIST)))
    with (
        open_box(confined(task, sandbox=sandbox), program) as box,
        secret.open() as file,
        socket.socket() as other,
    ):
        for each in (file.fileno(), other.fileno()):
            os.set_inheritable(each, True)
        done = enter(box, close_fds=False)
    assert json.loads(done.stdout) == [0, 1, 2]


@BOTH
def test_a_tasks_line_to_its_supervisor_is_not_inherited(task: AgentTask, sandbox: Sandbox) -> None:
    """Airflow's task process asks for connections and variables by its own standard input."""
    driver = """
import subprocess, sys
from pathlib import Path
from dataclasses import replace
from airflow_agent_provider.agents.contract import AgentTask, Confinement, Sandbox
from airflow_agent_provider.sandbox.box import Program, open_box
task = AgentTask("x", Path(sys.argv[1]), Path(sys.argv[2]),
                 confinement=Confinement(sandbox=Sandbox(sys.argv[3])))
with open_box(task, Program(("/bin/sh", "-c", "echo ask >&0; cat; echo done"))) as box:
    subprocess.run([str(box.wrapper)], check=True)   # as an SDK that inherits everything
"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"the answer: canary-4711\n")
        ours.shutdown(socket.SHUT_WR)
        done = subprocess.run(
            [sys.executable, "-c", driver, str(task.workspace), str(task.home), sandbox.value],
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "done\n"
        assert theirs.recv(100) == b"the answer: canary-4711\n"
        theirs.close()
        assert ours.recv(100) == b""


def test_an_sdks_own_streams_are_passed_on(task: AgentTask) -> None:
    with open_box(task, Program(("/bin/sh", "-c", "cat; echo error >&2"))) as box:
        done = subprocess.run(
            [str(box.wrapper)], input="asked\n", capture_output=True, text=True, timeout=SECONDS
        )
        assert (done.stdout, done.stderr) == ("asked\n", "error\n")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # As asyncio's subprocesses have it.
            process = subprocess.Popen([str(box.wrapper)], stdin=theirs, stdout=theirs, stderr=-3)
            theirs.close()
            ours.sendall(b"by socket")
            ours.shutdown(socket.SHUT_WR)
            assert ours.recv(100) == b"by socket"
            assert process.wait(SECONDS) == 0


def test_closed_streams_become_the_null_device(task: AgentTask) -> None:
    script = "ls -l /proc/self/fd > fds.txt"
    with open_box(task, Program(("/bin/sh", "-c", script))) as box:
        subprocess.run(
            ["/bin/sh", "-c", f'exec "{box.wrapper}" <&- >&- 2>&-'], check=True, timeout=SECONDS
        )
    listing = (task.workspace / "fds.txt").read_text()
    assert listing.count("/dev/null") == 2


def test_the_workers_keyring_cannot_be_read(task: AgentTask) -> None:
    machine = os.uname().machine
    numbers = {"x86_64": (248, 250), "aarch64": (217, 219)}.get(machine)
    if numbers is None:
        pytest.skip("the numbers of this machine's calls are not known here")
    add, keyctl = numbers
    read = (
        "import ctypes, sys\n"
        "call = ctypes.CDLL(None, use_errno=True).syscall\n"
        f"key = call({keyctl}, 10, -3, b'user', b'canary', 0)\n"
        "room = ctypes.create_string_buffer(99)\n"
        f"print(call({keyctl}, 11, key, room, 99), room.value)"
    )
    # In a process of its own, with a keyring of its own.
    driver = (
        "import ctypes, subprocess, sys\n"
        "call = ctypes.CDLL(None, use_errno=True).syscall\n"
        f"call({keyctl}, 1, None)\n"
        f"if call({add}, b'user', b'canary', b'{CANARY}', {len(CANARY)}, -3) <= 0: sys.exit(77)\n"
        "sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    )
    plain = subprocess.run(
        [sys.executable, "-c", driver, sys.executable, "-c", read], capture_output=True, text=True
    )
    if plain.returncode == 77:
        pytest.skip("this machine lets no key be made")
    assert CANARY in plain.stdout, "what is tried does not work even outside of a box"

    def through(box: Box) -> str:
        done = subprocess.run(
            [sys.executable, "-c", driver, str(box.wrapper)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        return done.stdout

    with open_box(task, Program(("/bin/sh", "-c", python(read)))) as box:
        assert through(box) == "-1 b''\n"


def test_limits_hold_and_never_rise(task: AgentTask) -> None:
    task = confined(task, memory=512 * 1024**2, file_size=10 * 1024**2)
    with open_box(
        task, Program(("/bin/sh", "-c", "ulimit -d; ulimit -f; ulimit -c; umask"))
    ) as box:
        assert enter(box).stdout.split() == ["524288", "20480", "0", "0077"]
        script = f"ulimit -f 2; exec '{box.wrapper}'"
        done = subprocess.run(
            ["/bin/sh", "-c", script], capture_output=True, text=True, timeout=SECONDS
        )
        assert done.stdout.split()[1] == "2"


def test_a_process_that_takes_too_much_memory_fails(task: AgentTask, shell: Shell) -> None:
    task = confined(task, memory=300 * 1024**2)
    said = shell(python("x = bytearray(600 * 1024**2); print('allocated')"), task=task)
    assert "MemoryError" in said or "Killed" in said or said == ""
    assert "allocated" not in said


def test_a_file_that_grows_too_large_fails(task: AgentTask, shell: Shell) -> None:
    task = confined(task, file_size=1024**2)
    shell("head -c 2m /dev/zero > big", task=task)
    assert (task.workspace / "big").stat().st_size == 1024**2


def test_what_tells_of_the_box_is_out_of_the_agents_reach(task: AgentTask, shell: Shell) -> None:
    with open_box(task, Program(("/bin/sh", "-c", "true")), None) as box:
        folder = box.folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert set(before) == {"spec.json", "agent"}
        shell(
            f"ls -la {folder}; echo x > {folder}/spec.json; rm -rf {folder}; mv {folder} /tmp/y; "
            f"cat {folder}/agent"
        )
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert enter(box).returncode == 0
    assert not folder.exists()


def test_what_killed_workers_left_is_removed_once_it_is_old(task: AgentTask) -> None:
    """The folder of a worker that was killed; that of one which lives stays, however old."""
    left = Path(tempfile.mkdtemp(prefix="agent-box-", dir="/tmp"))
    (left / "spec.json").write_text("{}")
    try:
        with open_box(task, Program(("/bin/true",))) as living:
            assert left.exists()
            for folder in (left, living.folder):
                os.utime(folder, (time.time() - 7200,) * 2)
            with open_box(task, Program(("/bin/true",))):
                assert not left.exists()
                assert living.folder.exists()
    finally:
        shutil.rmtree(left, ignore_errors=True)


def test_the_doors_socket_is_out_of_other_users_reach(task: AgentTask) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can be somebody else")
    with open_box(task, Program(("/bin/true",)), Upstream("http://127.0.0.1:9/v1")) as box:
        assert box.door is not None
        place = box.door.place
        connect = (
            "import socket, sys\n"
            "socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n"
            "print('connected')"
        )
        python3 = "/usr/bin/python3"
        if not Path(python3).exists():
            pytest.skip("there is no interpreter for other users")
        own = subprocess.run(
            [python3, "-c", connect, str(place)], capture_output=True, text=True, timeout=SECONDS
        )
        assert own.stdout == "connected\n"
        other = subprocess.run(
            [*("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"),
             *(python3, "-c", connect, str(place))],
            capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        assert "PermissionError" in other.stderr


def test_setuid_bits_do_not_outlive_the_box(task: AgentTask, shell: Shell) -> None:
    (task.workspace / "outside").write_text("x")
    said = shell(
        "mkdir -p deep/er $HOME/x; for place in a deep/er/b $HOME/x/c $TMPDIR/d; do "
        "cp /bin/true $place; chmod 6755 $place; done; chmod 0111 deep/er/b; chmod u+s deep/er/b; "
        "mkdir locked; cp a locked/e; chmod 4755 locked/e; chmod 000 locked; "
        "chmod 2755 deep; ln -s /usr/bin/passwd link; ls -l a | cut -c1-10",
    )
    assert "-rwsr-sr-x" in said
    task.workspace.joinpath("locked").chmod(0o755)
    found = [
        path
        for folder in (task.workspace, task.home)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o6000
    ]
    # A folder that the worker may not enter is one that nobody else may.
    assert found == ([] if os.geteuid() == 0 else [task.workspace / "locked/e"])
    assert stat.S_IMODE((task.workspace / "a").stat().st_mode) == 0o755


def test_off_says_so_and_runs_without_a_box(task: AgentTask, tmp_path: Path) -> None:
    seen = tmp_path / "outside.txt"
    program = Program(("/bin/sh", "-c", f"echo x > {seen}; id -u"))
    with open_box(confined(task, sandbox=Sandbox.OFF), program) as box:
        assert box.boxed is False
        assert enter(box).stdout.strip() == str(os.geteuid())
    assert seen.exists()


def test_a_missing_bwrap_says_how_to_get_it(
    task: AgentTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    box_module.works.cache_clear()
    with pytest.raises(Exception, match="apt-get install bubblewrap"):
        open_box(task, Program(("/bin/true",)))
    with open_box(confined(task, sandbox=Sandbox.AUTO), Program(("/bin/true",))) as box:
        assert box.boxed is False
    box_module.works.cache_clear()


def test_the_session_home_is_the_worker_users_own(task: AgentTask) -> None:
    with open_box(replace(task), Program(("/bin/true",))):
        assert stat.S_IMODE(task.home.stat().st_mode) == 0o700
