"""The working tree as git sees it from outside: what is in it now, as a tree object.

The index lies in our own git directory, so the agent's is never touched, and this works while the
agent edits.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from airflow_agent_provider.agents.failures import PolicyViolation
from airflow_agent_provider.workspace.git import Git, GitError, join_names
from airflow_agent_provider.workspace.guard import append_file

_TRIES = 6
_PAUSE = 0.05
#: git's words for a file that went or shrank while git read it.
_MOVING = re.compile(
    r"No such file or directory|unable to stat|short read|read error|file changed"
    r"|Stale file handle|beyond a symbolic link",
    re.IGNORECASE,
)
_NO_COMMIT = re.compile(r"'(.*?)/?' does not have a commit checked out")
_GITLINK = "160000"
#: All files, those that a sparse checkout leaves out as well.
_ALL_FILES = ("-c", "core.sparseCheckout=false")
_ADD = ("add", "--all", "--sparse")
#: Characters that mean something in a line of ``info/exclude``.
_EXCLUDE_SPECIAL = re.compile(rb"[\\\\*?\[# !]")
#: Agent programs leave these behind when they are stopped in the middle of a command.
_PROGRAM_FOLDERS = (".codex", ".aws", ".agents")


class Stage:
    """The index of a working tree.

    :param git: our git directory.
    :param tree: the working tree.
    :param apart: paths below it that hold the files of submodules, which are no part of it.
    :param links: the commits of its submodules by their paths, where it is checked out already.
    """

    def __init__(
        self,
        git: Git,
        tree: Path,
        apart: Sequence[str] = (),
        links: Mapping[str, str] | None = None,
    ) -> None:
        self._git = replace(git, work_tree=tree)
        self._tree = tree
        self._apart = tuple(apart)
        self._identity = _identity(tree)
        self._links = dict(links or {})
        self._held: list[str] = []
        self._lock = threading.Lock()

    @property
    def index(self) -> Path:
        """The index file."""
        return self._git.git_dir / "index"

    @property
    def links(self) -> Mapping[str, str]:
        """The commits of submodules by their paths."""
        return self._links

    def checkout(self, commit: str, *, wanted: Sequence[str] = ()) -> None:
        """Fill the working tree, which is empty, with the files of ``commit``.

        :param wanted: files that are wanted though a sparse checkout leaves them out.
        """
        with self._lock:
            self.index.unlink(missing_ok=True)
            self._unlock()
            # 0 workers means one per processor: git's own threshold keeps small trees serial.
            self._git.run("-c", "checkout.workers=0", "read-tree", "--reset", "-u", commit)
            if wanted:
                names = join_names(wanted)
                shown = ("update-index", "--no-skip-worktree", "-z", "--stdin")
                self._git.run(*_ALL_FILES, *shown, stdin=names)
                written = ("checkout-index", "--force", "--index", "-z", "--stdin")
                self._git.run(*_ALL_FILES, *written, stdin=names)
            self._links = self._gitlinks()

    def snapshot(self, *, settled: bool) -> str:
        """Return the tree object of all files now in the working tree but the ignored ones.

        The repository's submodules stay as they were recorded.

        :param settled: whether nobody writes any more. Where somebody does, a file that keeps on
            moving is left out; the next snapshot has it.
        :raises PolicyViolation: if there is another repository in the tree, or the tree's own
            folder was exchanged.
        :raises GitError: if a file cannot be read.
        """
        with self._lock:
            if _identity(self._tree) != self._identity:
                raise PolicyViolation(
                    f"the workspace's own folder {self._tree} was replaced while the agent worked"
                )
            self._unlock()
            # With a submodule in the index, git add would run git inside of it, by the
            # configuration that the agent may have put there.
            self._forget(self._links)
            self._refuse_nested()
            self._add(settled)
            if nested := self._gitlinks():
                self._forget(nested)
                raise _nested_repository(min(nested))
            self._restore_links()
            return self._git.line("write-tree")

    def restore(self, tree: str) -> None:
        """Make the working tree that of a tree object; files that git ignores stay."""
        with self._lock:
            self._unlock()
            self._mark("--skip-worktree")
            # What a sparse checkout left out stays out, and what came there since stays there.
            self._git.run(*_ALL_FILES, "read-tree", "--reset", "-u", tree)
            self._mark("--no-skip-worktree")
            self._git.run("clean", "-ffdq")

    def hold(self, paths: Iterable[str]) -> None:
        """Leave files as the index has them, whatever is in the tree in their places.

        :param paths: files of the index.
        """
        with self._lock:
            self._held = list(paths)
            self._mark("--assume-unchanged")

    def filtered(self, name: str, longest: int, *, since: str = "") -> dict[str, bytes]:
        """Return the index's files to which attributes assign a filter, with what the index has.

        :param name: the filter's name.
        :param longest: the most bytes of a file's content; of a longer file there are none.
        :param since: a commit; only files that are new or other since then.
        """
        if since:
            files = self._git.names(
                "diff-index", "--cached", "-z", "--name-only", "--no-renames",
                "--diff-filter=AM", "--ignore-submodules=all", since,
            )  # fmt: skip
        else:
            files = self._git.names("ls-files", "-z")
        said = self._git.names(
            "check-attr", "--cached", "-z", "--stdin", "filter", stdin=join_names(files)
        )
        paths = [path for path, value in zip(said[::3], said[2::3], strict=True) if value == name]
        return {path: self._content(path, longest) for path in paths}

    def _content(self, path: str, longest: int) -> bytes:
        blob = f":0:{path}"
        size = int(self._git.line("cat-file", "-s", blob))
        return self._git.run("cat-file", "blob", blob) if size <= longest else b""

    def _mark(self, flag: str) -> None:
        if self._held:
            held = join_names(self._held)
            self._git.run(*_ALL_FILES, "update-index", flag, "-z", "--stdin", stdin=held)

    def exclude_new(self) -> bytes:
        """Let git ignore the files that it does not know; return the patterns that do so."""
        with self._lock:
            new = self._git.names("ls-files", "-z", "--others", "--exclude-standard", "--directory")
            # A name that ends in a line break cannot be said there.
            patterns = b"".join(
                b"/" + _EXCLUDE_SPECIAL.sub(rb"\\\g<0>", os.fsencode(name)) + b"\n"
                for name in new
                if "\n" not in name
            )
            append_file(self._git.git_dir / "info" / "exclude", patterns)
            return patterns

    def remove_program_folders(self) -> None:
        """Remove the empty folders that agent programs leave at the top of the tree."""
        for name in _PROGRAM_FOLDERS:
            folder = self._tree / name
            if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()

    def _unlock(self) -> None:
        # The index is ours alone, so a lock file is one that a killed git left.
        self.index.with_name("index.lock").unlink(missing_ok=True)

    def _add(self, settled: bool) -> None:
        for attempt in range(_TRIES):
            last = attempt == _TRIES - 1
            try:
                if last and not settled:
                    self._git.run(*_ADD, "--ignore-errors", *self._own_files(), accept=(0, 1))
                else:
                    self._git.run(*_ADD, *self._own_files())
                return
            except GitError as error:
                if missing := _NO_COMMIT.search(error.stderr):
                    raise _nested_repository(missing[1]) from error
                # SIGBUS: the file was cut short under git's memory map.
                moving = _MOVING.search(error.stderr) or error.returncode == -signal.SIGBUS
                if last or not moving:
                    raise
                self._unlock()
                time.sleep(_PAUSE * 2**attempt)

    def _own_files(self) -> list[str]:
        """Return the arguments by which git leaves out the files of submodules.

        No file can do so: whatever ``.gitignore`` the tree has would win over it.
        """
        # Git follows no link of the tree, and takes it ill to be told of what is beyond one.
        apart = [
            path
            for path in self._apart
            if not any((self._tree / folder).is_symlink() for folder in Path(path).parents)
        ]
        return ["--", ".", *(f":(exclude,top,literal){path}" for path in apart)]

    def _gitlinks(self) -> dict[str, str]:
        links = {}
        for entry in self._git.names("ls-files", "--stage", "-z"):
            fields, _, path = entry.partition("\t")
            mode, object_id, _ = fields.split(" ")
            if mode == _GITLINK:
                links[path] = object_id
        return links

    def _forget(self, links: dict[str, str]) -> None:
        if links:
            self._git.run(
                "update-index", "--force-remove", "-z", "--stdin", stdin=join_names(links)
            )

    def _restore_links(self) -> None:
        if not self._links:
            return
        files = self._git.names("ls-files", "-z")
        # Files in a submodule's place are the agent's decision, and stay.
        taken = {str(place) for file in files for place in (Path(file), *Path(file).parents)}
        entries = [
            f"{_GITLINK} {object_id}\t{path}"
            for path, object_id in self._links.items()
            if path not in taken
        ]
        self._git.run("update-index", "-z", "--index-info", stdin=join_names(entries))

    def _refuse_nested(self) -> None:
        found = sorted(_nested_repositories(self._tree))
        if not found:
            return
        # Build folders and package caches hold clones, and git never enters what is ignored.
        # The dot keeps git from reading a name as one of its patterns.
        asked = join_names(f"./{path}" for path in found)
        ignored = self._git.names("check-ignore", "-z", "--stdin", stdin=asked, accept=(0, 1))
        for path in found:
            if f"./{path}" not in ignored:
                raise _nested_repository(path)


def _nested_repository(path: str) -> PolicyViolation:
    return PolicyViolation(
        f"the agent left a git repository inside the workspace, in {path}/; a step's work must be "
        f"plain files (clones belong into a folder that .gitignore names; submodules are not "
        f"followed)"
    )


def _nested_repositories(tree: Path) -> list[str]:
    found = []
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(tree / folder) as entries:
                for entry in entries:
                    if entry.name == ".git":
                        found.append(folder)
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append(f"{folder}/{entry.name}" if folder else entry.name)
        except FileNotFoundError:
            # Gone since its parent was listed: the agent is at work.
            continue
    # The first is the tree's own.
    return [folder for folder in found if folder]


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_dev, status.st_ino)
