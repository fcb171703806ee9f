"""What a box shows of the worker, as arguments of bubblewrap.

Each argument was measured on bubblewrap 0.8 and kernel 6.18 (https://github.com/containers/bubblewrap):
what an agent could do without it stands beside it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Bytes of the box's own /tmp and /dev/shm, which are memory.
_TMP_SIZE = 256 * 1024**2
_SHM_SIZE = 64 * 1024**2

#: What programs need of /etc. Not gitconfig, which may hold credentials.
_ETC = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ca-certificates",
    "ca-certificates.conf", "nsswitch.conf", "passwd", "group", "localtime", "timezone",
    "locale.alias", "mime.types", "os-release", "debian_version", "terminfo",
    # Not the whole of ssl and pki: root could read the private keys in there.
    "ssl/certs", "ssl/cert.pem", "ssl/ca-bundle.pem", "ssl/openssl.cnf", "pki/ca-trust",
    "pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf",
)  # fmt: skip
#: What they need besides where the network is open.
_ETC_NETWORK = ("resolv.conf", "hosts", "host.conf", "gai.conf", "services", "protocols")
#: Files of /proc that tell of, or reach, the worker's kernel.
_PROC_FILES = ("kcore", "keys", "key-users", "kmsg", "sysrq-trigger", "timer_list", "config.gz")
_PROC_FOLDERS = ("irq", "bus", "acpi", "scsi")

#: Where programs are looked up inside, last of all the folder of the interpreter.
SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True)
class Bounds:
    """What a box shows and lets be written.

    :param folder: where its program starts.
    :param writable: folders that may be written, shown under their own paths.
    :param readable: files and folders that may only be read, under their own paths; they win over
        ``writable``, so that a folder inside a writable one can be held back.
    :param network: whether the worker's network is there; else an empty one.
    :param sockets: sockets and files shown under other paths: pairs of here and there.
    """

    folder: Path
    writable: Sequence[Path] = ()
    readable: Sequence[Path] = ()
    network: bool = False
    sockets: Sequence[tuple[Path, str]] = ()


def arguments(bounds: Bounds) -> list[str]:
    """Return bubblewrap's arguments, without the program that runs inside."""
    return [str(word) for part in _parts(bounds) for word in part]


def interpreter() -> Path:
    """Return the interpreter, by the path that is shown inside the box."""
    return Path(os.path.realpath(sys.executable))


def interpreter_folder() -> Path:
    """Return the installation that the interpreter needs; without what is installed beside it."""
    return Path(sys.base_prefix).resolve()


def _parts(bounds: Bounds) -> Iterator[Sequence[object]]:
    yield from _namespaces(bounds.network)
    yield from _system(bounds.network)
    yield from _kernel()
    hidden = _hidden()
    for folder in hidden:
        yield "--tmpfs", folder
    # /tmp comes before what may lie below it.
    for readable in _outermost([interpreter_folder(), *bounds.readable]):
        if not _shown(readable, hidden):
            yield "--ro-bind-try", readable, readable
    for writable in bounds.writable:
        yield "--bind", writable, writable
    for readable in bounds.readable:
        if any(_lies_in(readable, writable) for writable in bounds.writable):
            yield "--ro-bind-try", readable, readable
    for here, there in bounds.sockets:
        yield "--ro-bind", here, there
    for folder in hidden:
        yield "--remount-ro", folder
    yield "--remount-ro", "/"
    yield "--chdir", bounds.folder


def _namespaces(network: bool) -> Iterator[Sequence[object]]:
    yield "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"
    yield ("--unshare-cgroup-try",)
    # Not 0: agents refuse to work unasked as root, and root could map itself again.
    yield "--uid", 1000, "--gid", 1000
    # No namespaces of its own, in which it would have capabilities.
    yield ("--disable-userns",)
    if not network:
        yield ("--unshare-net",)
    # Everything inside ends with the thread that started it.
    yield ("--die-with-parent",)
    # No terminal into which commands could be typed (TIOCSTI).
    yield ("--new-session",)
    yield "--cap-drop", "ALL", "--hostname", "box"


def _system(network: bool) -> Iterator[Sequence[object]]:
    yield "--ro-bind", "/usr", "/usr"
    for name in ("bin", "sbin", "lib", "lib64", "lib32"):
        place = Path("/", name)
        if place.is_symlink():
            yield "--symlink", place.readlink(), place
        elif place.is_dir():
            yield "--ro-bind", place, place
    for name in (*_ETC, *(_ETC_NETWORK if network else ())):
        yield "--ro-bind-try", f"/etc/{name}", f"/etc/{name}"


def _kernel() -> Iterator[Sequence[object]]:
    yield "--proc", "/proc", "--dev", "/dev"
    # Root's box could write core_pattern otherwise, and so run a program on the worker.
    yield "--ro-bind", "/proc/sys", "/proc/sys"
    for name in _PROC_FILES:
        if Path("/proc", name).exists():
            yield "--ro-bind", "/dev/null", f"/proc/{name}"
    for name in _PROC_FOLDERS:
        if Path("/proc", name).is_dir():
            yield "--tmpfs", f"/proc/{name}", "--remount-ro", f"/proc/{name}"
    yield "--size", _SHM_SIZE, "--tmpfs", "/dev/shm"
    yield "--perms", "1777", "--size", _TMP_SIZE, "--tmpfs", "/tmp"
    yield "--dir", "/run", "--dir", "/var/tmp"
    # /dev is a writable memory disk of half the memory otherwise.
    yield "--remount-ro", "/dev"


def _hidden() -> list[Path]:
    """Return folders of the deployment that lie in what is shown, as Airflow's on some images."""
    home = Path(os.environ.get("AIRFLOW_HOME") or Path.home() / "airflow")
    shown = (Path("/usr"), interpreter_folder())
    found = [
        folder
        for folder in (home.absolute(), Path.home().absolute())
        if folder.is_dir() and any(_below(folder, place) for place in shown)
    ]
    return _outermost(found)


def _shown(path: Path, hidden: Sequence[Path]) -> bool:
    """Return whether ``path`` is there already, since /usr is."""
    return path.is_relative_to("/usr") and not any(path.is_relative_to(each) for each in hidden)


def _below(path: Path, folder: Path) -> bool:
    return path != folder and path.is_relative_to(folder)


def _lies_in(path: Path, folder: Path) -> bool:
    """Return whether ``path`` lies in ``folder``, and is no link out of it that an agent made."""
    if not path.is_relative_to(folder):
        return False
    inside = path.relative_to(folder)
    return Path(os.path.realpath(path)) == Path(os.path.realpath(folder)) / inside


def _outermost(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in sorted(set(paths)):
        if not any(path.is_relative_to(outer) for outer in found):
            found.append(path)
    return found
