"""What of a repository's files a workspace holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.workspace.git import Git
from airflow_agent_provider.workspace.submodules import SubmoduleSource

#: Of the top folder, its files and none of its folders; then what is asked for.
_TOP = ("/*", "!/*/")


@dataclass(frozen=True)
class Checkout:
    """What of the repository's files a workspace holds; all but its submodules' by default.

    :param sparse: patterns of the files, as :mod:`~airflow_agent_provider.agents.path_patterns`
        has them; empty for all. The files of the top folder are always there.
    :param submodules: gives the repository of a submodule; None leaves submodules empty.
    :param lfs: whether files that git-lfs manages have their content, and are not pointers.
    """

    sparse: Sequence[str] = ()
    submodules: SubmoduleSource | None = None
    lfs: bool = False


def make_sparse(git: Git, patterns: Sequence[str]) -> None:
    """Let a git directory fill its working tree with some files alone.

    Where one of the patterns is a folder's, all below it is there.

    :param git: the git directory.
    :param patterns: the patterns; nothing is done where there are none.
    """
    if not patterns:
        return
    lines = [*_TOP, *(f"/{pattern}" for pattern in patterns)]
    if any("\n" in line or line.endswith(" ") for line in lines):
        raise InvalidDefinition("a pattern of sparse ends in a space or holds a line break")
    git.run("config", "core.sparseCheckout", "true")
    info = git.git_dir / "info"
    info.mkdir(exist_ok=True)
    Path(info / "sparse-checkout").write_text("".join(f"{line}\n" for line in lines))


def check_sparse(git: Git, patterns: Sequence[str], name: str) -> None:
    """Make sure that each pattern names a file of the index.

    :param name: the repository, for the error.
    :raises InvalidDefinition: naming those that name none.
    """
    idle = [p for p in patterns if not git.run("ls-files", "-z", "--", f":(top,glob){p}")]
    if idle:
        raise InvalidDefinition(
            f"sparse: {', '.join(idle)} names no file of repository {name}; a pattern is a path "
            f"from its top, such as src/**"
        )
