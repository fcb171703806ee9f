"""What a box shows of the worker: nothing that is not named, and little of that to be written."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_agent_provider.agents.contract import Access, AgentTask, Network
from airflow_agent_provider.agents.failures import PolicyViolation
from airflow_agent_provider.sandbox import bounds as bounds_module
from airflow_agent_provider.sandbox.bounds import Bounds, arguments, interpreter_folder
from airflow_agent_provider.sandbox.box import Program, open_box
from airflow_agent_provider.sandbox.syscalls import call_filter

from .conftest import Shell, confined, python

pytestmark = pytest.mark.integration


def pairs(words: list[str], option: str) -> list[str]:
    """Return what follows each ``option``."""
    return [words[place + 1] for place, word in enumerate(words) if word == option]


def test_the_network_is_the_workers_only_where_it_is_open(tmp_path: Path) -> None:
    closed, opened = (arguments(Bounds(tmp_path, network=network)) for network in (False, True))
    assert "--unshare-net" in closed
    assert "--unshare-net" not in opened
    assert "/etc/resolv.conf" not in closed
    assert "/etc/resolv.conf" in opened
    for words in (closed, opened):
        assert {"--die-with-parent", "--new-session", "--disable-userns"} <= set(words)
        assert words[words.index("--uid") + 1] == "1000"


def test_what_may_only_be_read_wins_over_what_may_be_written(tmp_path: Path) -> None:
    for name in ("a/inside", "b"):
        (tmp_path / name).mkdir(parents=True)
    words = arguments(
        Bounds(
            tmp_path, writable=[tmp_path / "a"], readable=[tmp_path / "a/inside", tmp_path / "b"]
        )
    )
    written, *_ = [place for place, word in enumerate(words) if word == "--bind"]
    read = [place for place, word in enumerate(words) if word == str(tmp_path / "a/inside")]
    assert max(read) > written
    assert str(tmp_path / "b") in pairs(words, "--ro-bind-try")


def test_a_link_in_what_may_be_written_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/.git").symlink_to(tmp_path / "secret")
    words = arguments(
        Bounds(tmp_path, writable=[tmp_path / "tree"], readable=[tmp_path / "tree/.git"])
    )
    last = len(words) - words[::-1].index("--bind")
    assert str(tmp_path / "tree/.git") not in words[last:]


@pytest.mark.parametrize("which", ["workspace", "home"])
def test_a_folder_that_became_a_link_gets_no_box(
    task: AgentTask, tmp_path: Path, which: str
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(PolicyViolation, match="is a symbolic link"):
        open_box(replace(task, **{which: link}), Program(("/bin/true",)))


def test_what_a_deployment_keeps_below_usr_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As images do whose Airflow home is /usr/local/airflow; with workspaces inside, as default."""
    monkeypatch.setattr(bounds_module, "interpreter_folder", lambda: tmp_path)
    home = tmp_path / "airflow"
    tree, package = home / "agents/tree", home / "package"
    for folder in (tree, package):
        folder.mkdir(parents=True)
    monkeypatch.setenv("AIRFLOW_HOME", str(home))
    words = arguments(Bounds(tree, writable=[tree], readable=[package]))
    assert str(home) in pairs(words, "--tmpfs")
    assert words.index("--bind") > words.index(str(home))
    assert pairs(words, "--remount-ro").index(str(home)) >= 0


def test_the_agent_sees_its_folders_and_programs_and_nothing_else(
    shell: Shell, task: AgentTask, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    tool = tmp_path / "tools"
    tool.mkdir()
    (tool / "tool.txt").write_text("tool")
    task = confined(task, read_only_paths=(tool,))
    seen = shell(
        f"cat {secret}; cat {tool}/tool.txt; ls {tmp_path} {tmp_path}/step; ls /; pwd; id -u; "
        "hostname; ls /home /opt /srv /mnt /var/log /sys 2>&1",
        task=task,
    )
    assert "No such file" in seen.splitlines()[-1]
    assert "secret\n" not in seen
    assert "tool" in seen
    assert f"{task.workspace}\n1000\nbox\n" in seen
    for name in ("home", "opt", "srv", "mnt", "var/log", "sys"):
        assert f"cannot access '/{name}'" in seen


def test_it_writes_its_folders_and_a_private_tmp_and_nothing_else(
    shell: Shell, task: AgentTask
) -> None:
    places = [
        *("/", "/usr", "/etc", "/run", "/dev", "/var/tmp", "/tmp", "/dev/shm", "/proc/sys/kernel"),
        *(interpreter_folder(), task.workspace, task.workspace / ".git"),
        *(task.home, task.home / "tmp"),
        # Below /tmp here, so that this one is the box's own.
        task.workspace.parent,
    ]
    outside = Path("/tmp/probe-of-the-box")
    script = 'for place; do (: > "$place/probe-of-the-box") 2>/dev/null && echo "$place"; done'
    written = shell(script, *map(str, places)).split()
    own = [str(task.workspace), str(task.home), str(task.home / "tmp")]
    assert written == ["/tmp", "/dev/shm", *own, str(task.workspace.parent)]
    assert not outside.exists()
    assert sorted(path.name for path in task.workspace.parent.iterdir()) == ["home", "tree"]


def test_read_only_access_is_that_of_the_file_system(shell: Shell, task: AgentTask) -> None:
    task = replace(task, access=Access.READ_ONLY)
    (task.workspace / "a.txt").write_text("a")
    script = "cat a.txt; rm -f a.txt; touch b.txt; chmod 777 .; touch $HOME/c.txt && echo home"
    said = shell(script, task=task)
    assert said.startswith("a")
    assert "home" in said
    assert "Read-only file system" in said
    assert sorted(path.name for path in task.workspace.iterdir()) == [".git", "a.txt"]


def test_private_memory_disks_are_bounded(shell: Shell) -> None:
    said = shell(
        "for place in /tmp /dev/shm; do head -c 400m /dev/zero > $place/x 2>/dev/null; "
        "stat -c %s $place/x; done"
    )
    assert [int(size) for size in said.split()] == [256 * 1024**2, 64 * 1024**2]


def test_nothing_of_proc_but_processes_may_be_written(shell: Shell) -> None:
    """Opened for appending, which changes nothing by itself; as root, sysctls are a way out."""
    found = shell(
        "find /proc -xdev -not -path '/proc/[0-9]*' -not -path '*/self/*' -type f -writable "
        "2>/dev/null | while read file; do (: >> $file) 2>/dev/null && echo $file; done"
    )
    # Groups of pressure, which are this opener's own and end with it; and a register of the
    # processor's, whose every call wants a right that the box has not.
    known = {f"/proc/pressure/{name}" for name in ("io", "cpu", "memory", "irq")} | {"/proc/mtrr"}
    assert set(found.split()) <= known


def test_the_workers_devices_keep_their_permissions(shell: Shell) -> None:
    names = ["null", "zero", "full", "random", "urandom", "tty"]
    before = {name: Path("/dev", name).stat().st_mode for name in names}
    try:
        said = shell(
            "for d; do chmod 640 /dev/$d 2>/dev/null && echo $d; done; "
            "echo x > /dev/null && head -c 2 /dev/urandom | wc -c",
            *names,
        )
        assert said.split() == ["2"]
        assert {name: Path("/dev", name).stat().st_mode for name in names} == before
    finally:
        for name, mode in before.items():
            if Path("/dev", name).stat().st_mode != mode:
                Path("/dev", name).chmod(mode & 0o7777)


def test_refused_system_calls_look_like_an_old_kernel(shell: Shell) -> None:
    code = (
        "import ctypes, sys\n"
        "call = ctypes.CDLL(None, use_errno=True).syscall\n"
        "for number in sys.argv[1:]:\n"
        "    call(int(number), 0, 0, 0, 0, 0); print(ctypes.get_errno())"
    )
    numbers = {"x86_64": ["250", "248", "425", "321", "323", str(0x40000000 | 250)],
               "aarch64": ["219", "217", "425", "280", "282"]}  # fmt: skip
    asked = numbers.get(os.uname().machine)
    if asked is None:
        pytest.skip("the filter knows no calls of this machine")
    said = shell(python(code), *asked)
    assert said.split() == ["38"] * len(asked)


def test_sockets_are_those_of_networks_and_of_files(shell: Shell) -> None:
    """That of a virtual machine to its host (40) is in no network namespace."""
    code = (
        "import socket, sys\n"
        "for family in range(1, 46):\n"
        "    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):\n"
        "        try: socket.socket(family, kind).close(); print(family)\n"
        "        except OSError: pass"
    )
    assert set(shell(python(code)).split()) == {"1", "2", "10", "16"}


def verdict(architecture: int, number: int, argument: int = 0) -> int:
    """Return what the filter answers, as the kernel would run it."""
    words = call_filter()
    program = [struct.unpack_from("=HBBI", words, place) for place in range(0, len(words), 8)]
    data = {0: number, 4: architecture, 16: argument}
    place = value = 0
    while True:
        code, hit, miss, operand = program[place]
        place += 1
        if code == 0x20:
            value = data[operand]
        elif code == 0x54:
            value &= operand
        elif code == 0x15:
            place += hit if value == operand else miss
        else:
            assert code == 0x06
            return int(operand)


X86, I386, ARM64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
ALLOWED, NO_CALL, NO_FAMILY = 0x7FFF0000, 0x00050000 | 38, 0x00050000 | 97


@pytest.mark.parametrize(
    ("architecture", "refused", "sockets"),
    [
        (X86, {248, 249, 250, 298, 321, 323, 425, 426, 427}, 41),
        (I386, {102, 286, 287, 288, 336, 357, 374, 425, 426, 427}, 359),
        (ARM64, {217, 218, 219, 241, 280, 282, 425, 426, 427}, 198),
        (ARM, {309, 310, 311, 364, 386, 388, 425, 426, 427}, 281),
        (0x80000016, set(), 0),
    ],
)
def test_the_filter_refuses_what_it_says_and_nothing_else(
    architecture: int, refused: set[int], sockets: int
) -> None:
    found = {number for number in range(600) if verdict(architecture, number, 1) == NO_CALL}
    assert found == refused
    assert all(verdict(architecture, number, 1) in (ALLOWED, NO_CALL) for number in range(600))
    if refused:
        families = [n for n in range(64) if verdict(architecture, sockets, n) == ALLOWED]
        assert families == [1, 2, 10, 16]
        assert verdict(architecture, sockets, 40) == NO_FAMILY
    if architecture == X86:
        assert verdict(architecture, 0x40000000 | 250) == NO_CALL


def test_an_open_network_is_the_workers(shell: Shell, task: AgentTask) -> None:
    both = [
        shell(
            "ls /sys/class/net 2>/dev/null; cat /proc/net/dev | wc -l",
            task=confined(task, network=n),
        )
        for n in (Network.MODEL, Network.OPEN)
    ]
    here = len(Path("/proc/net/dev").read_text().splitlines())
    assert int(both[1]) == here
    assert int(both[0]) == 3
