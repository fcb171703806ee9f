"""What a checkpoint weighs, and what a workspace costs on a worker that knows the repository.

Generates a repository of the given size, then measures against a plain ``git clone`` of it, first
with our git beside the process and then in its box:

    python benchmarks/checkpoint.py [--megabytes 300] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.sandbox.git_box import GitBox
from airflow_agent_provider.workspace.cleanup import remove_tree
from airflow_agent_provider.workspace.git import GitRunners
from airflow_agent_provider.workspace.repository import Repository, resolve_base
from airflow_agent_provider.workspace.workspace import Upstream, Workspace

SOURCES = 4_000
SOURCE_LINES = 120
ASSETS = 8
ASSET_BYTES = 128 * 1024
TARGET_BYTES = 20_000
TARGET_SECONDS = 1.0


def history(megabytes: int) -> Iterator[bytes]:
    """Yield a fast-import stream: source files once, then assets that change in every commit."""
    dice = random.Random(4711)
    words = [f"word{n:x}" for n in range(2_000)]
    commits = max(1, megabytes * 1024 * 1024 // (ASSETS * ASSET_BYTES))
    for number in range(commits):
        yield b"commit refs/heads/main\ncommitter Ada <ada@example.org> %d +0000\n" % (
            10**9 + number
        )
        yield b"data 7\nChange\n\n"
        if number == 0:
            for n in range(SOURCES):
                text = "\n".join(" ".join(dice.choices(words, k=6)) for _ in range(SOURCE_LINES))
                yield from _file(f"src/package{n % 50}/module{n}.py", text.encode())
        for n in range(ASSETS):
            yield from _file(f"assets/{n}.bin", dice.randbytes(ASSET_BYTES))
    yield b"done\n"


def _file(name: str, content: bytes) -> Iterator[bytes]:
    yield b"M 100644 inline %s\ndata %d\n" % (name.encode(), len(content))
    yield content
    yield b"\n"


def generate(folder: Path, megabytes: int) -> None:
    """Make the bare repository ``folder``."""
    git("init", "-q", "--bare", "-b", "main", str(folder))
    importer = subprocess.Popen(
        ["git", "fast-import", "--quiet", "--done"], cwd=folder, stdin=subprocess.PIPE
    )
    assert importer.stdin is not None
    for part in history(megabytes):
        importer.stdin.write(part)
    importer.stdin.close()
    if importer.wait():
        raise SystemExit("git fast-import failed")


def git(*args: str) -> None:
    """Run git as a user does."""
    subprocess.run(["git", *args], check=True)


def median(action: Callable[[int], object], rounds: int) -> float:
    """Return the median of the seconds that ``action`` takes."""
    times = []
    for number in range(rounds):
        started = time.perf_counter()
        action(number)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(folder: Path, megabytes: int, rounds: int) -> None:
    """Measure and print."""
    origin = folder / "origin.git"
    generate(origin, megabytes)
    repository = Repository(origin.as_uri())
    root = folder / "worker"
    version = subprocess.run(["git", "version"], capture_output=True, text=True, check=True)
    stored = size_of(origin)
    print(
        f"set-up: {version.stdout.strip()}, {os.cpu_count()} CPUs, median of {rounds}; repository "
        f"of {stored / 2**20:.0f} MiB, {SOURCES + ASSETS} files in its tree"
    )

    def clone(number: int) -> None:
        git("clone", "-q", origin.as_uri(), str(folder / f"clone-{number}"))
        remove_tree(folder / f"clone-{number}")

    plain = median(clone, rounds)
    cold = median(lambda _: resolve_base(repository, root / "mirrors"), 1)
    base = resolve_base(repository, root / "mirrors")

    print(f"{'':38}{'':>12}{'ratio':>12}")
    row("plain git clone", f"{plain:.3f} s", 1.0, "")
    row("first fetch of the mirror", f"{cold:.3f} s", cold / plain, "")
    for where, runners in (("", None), (", git boxed", GitBox)):
        figures = measure_steps(folder, root, repository, base, rounds, runners)
        weight = figures.pop("its bundle, stored")
        for name, seconds in figures.items():
            target = TARGET_SECONDS if name.startswith("workspace") else 0.0
            row(f"{name}{where}", f"{seconds:.3f} s", seconds / plain, verdict(seconds, target))
    row("its bundle, stored", f"{weight:,.0f} B", weight / stored, verdict(weight, TARGET_BYTES))


def measure_steps(
    folder: Path,
    root: Path,
    repository: Repository,
    base: str,
    rounds: int,
    runners: GitRunners | None,
) -> dict[str, float]:
    """Return the medians of what each step and each checkpoint costs."""
    attempt = AttemptKey(StepKey("bench", "run", "step"), 1)

    def prepare(checkpoint: Upstream | None = None) -> Workspace:
        return Workspace.prepare(
            root=root,
            attempt=attempt,
            repository=repository,
            base=base,
            checkpoint=checkpoint,
            runners=runners,
        )

    def prepare_once(checkpoint: Upstream | None = None) -> None:
        prepare(checkpoint).close()

    figures = {"workspace, warm worker": median(lambda _: prepare_once(), rounds)}
    with prepare() as workspace:
        source = workspace.path / "src/package7/module7.py"
        commits: list[str] = []

        def checkpoint(number: int) -> None:
            lines = "".join(f"line {number}.{n}\n" for n in range(10))
            source.write_text(source.read_text() + lines)
            commits.append(workspace.checkpoint({"Agents-Step": "step"}, "Bench") or "")

        figures["checkpoint of 10 lines"] = median(checkpoint, 3 * rounds)
        bundle = folder / "checkpoint.bundle"
        figures["its bundle"] = median(lambda _: workspace.bundle(commits[0], bundle), rounds)
    figures["its bundle, stored"] = bundle.stat().st_size
    kept = Upstream("step", commits[0], bundle)
    figures["workspace from a checkpoint"] = median(lambda _: prepare_once(kept), rounds)
    return figures


def row(name: str, value: str, ratio: float, note: str) -> None:
    """Print one line of the table."""
    print(f"{name:38}{value:>12}{ratio:>12.2g}  {note}")


def verdict(value: float, target: float) -> str:
    """Return whether a target is reached; empty where there is none."""
    if not target:
        return ""
    return f"target ≤ {target:,g}: {'reached' if value <= target else 'MISSED'}"


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--megabytes", type=int, default=300, help="size of the repository's history"
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agents-bench-") as folder:
        measure(Path(folder), arguments.megabytes, arguments.rounds)


if __name__ == "__main__":
    main()
