"""The files of a repository's submodules, for a workspace to read.

Which submodules there are, and where they are fetched from, the run's base commit says: never the
tree, where an agent can write a ``.gitmodules`` of its own. Each is fetched outside of the box into
a mirror like any repository's, and put into the tree as plain files, without a ``.git``. A git
directory per submodule, beside the workspace's own, knows what they were. A step's commit keeps
submodules as the repository records them, so what it changes of their files is a fault.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from airflow_agent_provider.agents.failures import AgentFailure, InvalidDefinition
from airflow_agent_provider.workspace.git import Git, GitRunner, run_git
from airflow_agent_provider.workspace.repository import Mirror, Repository, borrow
from airflow_agent_provider.workspace.stage import Stage

#: Gives the repository of a submodule.
#:
#: Called with its URL, as ``.gitmodules`` has it but never relative; the repository that records
#: it; and the words by which an error names it. Raises PolicyViolation where it may not be fetched.
SubmoduleSource = Callable[[str, Repository, str], Repository]

_GITLINK = b"160000 "
_SETTING = re.compile(r"submodule\.(.*)\.(path|url)", re.DOTALL)
#: Submodules in submodules, and all of a workspace: beyond, it is a mistake or an attack.
_MOST_DEEP = 4
_MOST = 100


@dataclass(frozen=True)
class Submodule:
    """One submodule of the run's base, or of another submodule.

    :param path: its path below the workspace's tree.
    :param commit: the commit that is recorded there.
    :param mirror: what holds that commit.
    """

    path: str
    commit: str
    mirror: Mirror


def find_submodules(mirror: Mirror, commit: str, source: SubmoduleSource) -> list[Submodule]:
    """Return the submodules of a commit, nested ones too, and have their commits on this worker.

    :param mirror: the mirror that has the commit.
    :param source: gives the repository of each.
    :raises PolicyViolation: if one of them may not be fetched.
    :raises InvalidDefinition: if one of them is said wrongly, or has no such commit.
    :raises AgentFailure: if one of them cannot be fetched.
    """
    found: list[Submodule] = []
    for submodule in _found(mirror, commit, source, "", 1):
        found.append(submodule)
        if len(found) > _MOST:
            raise InvalidDefinition(
                f"repository {mirror.repository.name} has more than {_MOST} submodules; leave out "
                f"submodules, and fetch what is needed in setup"
            )
    return found


def _found(
    mirror: Mirror, commit: str, source: SubmoduleSource, above: str, depth: int
) -> Iterator[Submodule]:
    links = _links(mirror.git, commit)
    if not links:
        return
    if depth > _MOST_DEEP:
        raise InvalidDefinition(
            f"submodules lie more than {_MOST_DEEP} deep in each other, at {above}"
        )
    urls = _urls(mirror.git, commit)
    for path, recorded in sorted(links.items()):
        where = f"{above}{path}"
        url = urls.get(path)
        if not url:
            raise InvalidDefinition(
                f"submodule {where} of repository {mirror.repository.name} has no URL in "
                f".gitmodules at its commit {commit[:12]}"
            )
        own = _absolute(url, mirror.repository.url)
        repository = source(own, mirror.repository, f"submodule {where}")
        inner = Mirror(mirror.git.git_dir.parent, repository)
        try:
            inner.ensure(recorded)
        except AgentFailure as failure:
            raise type(failure)(f"submodule {where}: {failure.reason}", raw=failure.raw) from None
        yield Submodule(where, recorded, inner)
        yield from _found(inner, recorded, source, f"{where}/", depth + 1)


def _links(git: Git, commit: str) -> dict[str, str]:
    links = {}
    for entry in git.run("ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0"):
        if entry.startswith(_GITLINK):
            fields, _, path = entry.partition(b"\t")
            links[os.fsdecode(path)] = fields.split()[2].decode()
    return links


def _urls(git: Git, commit: str) -> dict[str, str]:
    """Return the URL of each path that ``.gitmodules`` names."""
    blob = f"{commit}:.gitmodules"
    if git.complete("cat-file", "-e", blob, accept=(0, 1, 128)).returncode:
        return {}
    listing = git.names("config", "--blob", blob, "--no-includes", "--list", "-z")
    said: dict[str, dict[str, str]] = {}
    for setting in listing:
        key, _, value = setting.partition("\n")
        if match := _SETTING.fullmatch(key):
            said.setdefault(match[1], {})[match[2]] = value
    return {each["path"]: each["url"] for each in said.values() if {"path", "url"} <= set(each)}


def _absolute(url: str, parent: str) -> str:
    """Return ``url``, which may be relative to the URL of the repository that records it."""
    if not url.startswith(("./", "../")):
        return url
    base = parent.rstrip("/")
    while url.startswith(("./", "../")):
        if url.startswith("../"):
            # As git does it: in host:path, the colon is where the host ends.
            end = max(base.rfind("/"), base.rfind(":"))
            base = base[: end + 1] if base[end : end + 1] == ":" else base[:end]
        url = url.partition("/")[2]
    return f"{base}{url}" if base.endswith(":") else f"{base}/{url}"


class SubmoduleFiles:
    """The files of submodules in a workspace's tree.

    :param submodules: the submodules; those in others come after them.
    :param tree: the workspace's tree.
    :param folder: the folder of the submodules' git directories, which is made.
    """

    def __init__(self, submodules: Sequence[Submodule], tree: Path, folder: Path) -> None:
        self.folder = folder
        self._tree = tree
        self._submodules = tuple(submodules)
        self._git: dict[str, Git] = {}
        #: Of each that is filled, the submodules in it.
        self._links: dict[str, Mapping[str, str]] = {}
        folder.mkdir(mode=0o700)
        for count, submodule in enumerate(submodules):
            git = Git(folder / str(count))
            init = ["init", "--quiet", "--bare", "--template=", str(git.git_dir)]
            run_git(init, cwd=folder)
            borrow(git.git_dir, submodule.mirror.objects)
            self._git[submodule.path] = git

    @property
    def readable(self) -> list[Path]:
        """What git needs to read beside :attr:`folder`."""
        configs = [git.git_dir / "config" for git in self._git.values()]
        return [*configs, *(submodule.mirror.objects for submodule in self._submodules)]

    @property
    def paths(self) -> list[str]:
        """The paths in the tree below which files are a submodule's."""
        return [submodule.path for submodule in self._submodules]

    def use(self, runner: GitRunner) -> None:
        """Let git run by ``runner``."""
        self._git = {path: replace(git, runner=runner) for path, git in self._git.items()}

    def fill(self) -> None:
        """Put the files into the tree, which holds nothing of an agent's.

        A submodule whose folder is not there is left out: the checkout is a sparse one.
        """
        self._links.clear()
        for submodule in self._submodules:
            if _is_folder(self._tree, submodule.path):
                stage = self._stage(submodule.path)
                stage.checkout(submodule.commit)
                self._links[submodule.path] = stage.links

    def changed(self) -> list[str]:
        """Return the files in the tree that are not as their submodule has them."""
        found = []
        for submodule in self._filled():
            path = submodule.path
            if not _is_folder(self._tree, path):
                found.append(path)
                continue
            tree = self._stage(path).snapshot(settled=True)
            names = self._git[path].names(
                "diff-tree", "-r", "-z", "--name-only", "--no-renames",
                "--ignore-submodules=none", submodule.commit, tree,
            )  # fmt: skip
            found += [f"{path}/{name}" for name in names]
        return found

    def restore(self) -> None:
        """Make the files what they were; those that git ignores stay."""
        for submodule in self._filled():
            # Its own folder is the workspace's to make; see Stage.restore.
            if _is_folder(self._tree, submodule.path):
                self._stage(submodule.path).restore(submodule.commit)

    def exclude_new(self) -> None:
        """Let git ignore the files that it does not know."""
        for submodule in self._filled():
            if _is_folder(self._tree, submodule.path):
                self._stage(submodule.path).exclude_new()

    def _filled(self) -> Iterator[Submodule]:
        return (each for each in self._submodules if each.path in self._links)

    def _stage(self, path: str) -> Stage:
        # Made anew each time: the folder itself may be another one by now.
        inside = [other[len(path) + 1 :] for other in self.paths if other.startswith(f"{path}/")]
        return Stage(self._git[path], self._tree / path, inside, self._links.get(path))


def _is_folder(tree: Path, path: str) -> bool:
    """Return whether ``path`` is a folder of the tree, with no link on the way."""
    here = tree
    for name in path.split("/"):
        here = here / name
        try:
            if not stat.S_ISDIR(here.lstat().st_mode):
                return False
        except OSError:
            return False
    return True
