"""The working tree of a step: made from the run's commits, and its work made into commits.

Below the step's folder lie three: ``tree`` is the working tree, ``home`` the agent's session home,
and ``git`` our own git directory. The agent sees an ordinary repository, ``tree/.git``, in which
``git status``, ``diff``, ``log`` and even ``commit`` work; but we never read it. All of our git
calls name ``git`` as their directory and take from the tree nothing but its files. So whatever an
agent does to ``.git`` (hooks, filters, configuration, a ``commondir``, another repository in its
place) has no effect on us. What follows from files is held as well: links are not followed, nested
repositories are refused, and submodules are neither followed nor entered; where their files are
wanted, :mod:`~airflow_agent_provider.workspace.submodules` puts them there, by what the run's base
says.

Our own commands run where a :class:`~airflow_agent_provider.workspace.git.GitRunner` runs them: in
a box that sees the tree, our git directory and the borrowed objects, and nothing else. Calls to the
repository need credentials and run outside, on our git directory alone, after the box has ended and
the directory was seen to be what we made of it.

Left to the box of the sandbox, since an unboxed agent is the worker's own user: that it writes to
our git directory, to a mirror or to another workspace; that it fills the disk; that a process which
outlives its attempt goes on writing. As no filter runs, files that git-lfs manages are pointers,
unless :mod:`~airflow_agent_provider.workspace.lfs` puts their content there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from airflow_agent_provider.agents.failures import (
    AgentFailed,
    InvalidDefinition,
    Unavailable,
)
from airflow_agent_provider.agents.identity import AttemptKey
from airflow_agent_provider.workspace.checkout import Checkout, check_sparse, make_sparse
from airflow_agent_provider.workspace.cleanup import discard, step_folder
from airflow_agent_provider.workspace.git import PLAIN, Git, GitError, GitRunners, run_git
from airflow_agent_provider.workspace.guard import GitGuard, copy_file
from airflow_agent_provider.workspace.lfs import LfsFiles
from airflow_agent_provider.workspace.merge import Side, merge
from airflow_agent_provider.workspace.output import read_beneath
from airflow_agent_provider.workspace.remote import QUERY_TIMEOUT, TRANSFER_TIMEOUT
from airflow_agent_provider.workspace.repository import (
    IDENTITY,
    Mirror,
    Repository,
    borrow,
    commit_tree,
    empty_root,
    is_ref,
)
from airflow_agent_provider.workspace.stage import Stage
from airflow_agent_provider.workspace.submodules import SubmoduleFiles, find_submodules

_PUSH_TRIES = 6
_MOVED = re.compile(
    r"stale info|fetch first|non-fast-forward|cannot lock ref|failed to update ref"
    r"|incorrect old value|reference already exists"
)
_ALL_FILES = Checkout()
_ABSENT = re.compile(r"couldn't find remote ref")


@dataclass(frozen=True)
class Upstream:
    """The work of a step that this one continues.

    :param step_id: the step.
    :param commit: its commit.
    :param bundle: git bundle with the commits from the run's base to it; None where it is the base
        itself or the repository has it.
    """

    step_id: str
    commit: str
    bundle: Path | None = None


class Workspace:
    """The git working tree that one attempt of a step works in; made by :meth:`prepare`.

    One thread at a time may commit, while any process edits the tree. A context manager: leaving it
    ends what runs our git, and keeps the files.

    :ivar path: the working tree, the same path on every worker.
    :ivar home: the agent's session home, empty at first, readable for the worker's user alone.
    :ivar base: the commit that the run starts from.
    :ivar start: the commit that this step starts from: the base, its upstream's commit, or the
        merge of its upstreams' commits.
    """

    _stage: Stage
    #: The last checkpoint's commit, or what the tree was filled with, and its tree object.
    _tip: str
    _tip_tree: str
    #: The tree object of the last step's commit.
    _judged_tree: str
    _mirror_objects: Path
    _guard: GitGuard
    _submodules: SubmoduleFiles | None = None
    _lfs: LfsFiles | None = None
    #: Files that git-lfs manages, whose changes the last step's commit could not keep.
    _plain: Sequence[str] = ()
    #: Files of submodules that the last step's commit could not keep.
    _unkept: Sequence[str] = ()

    def __init__(
        self,
        folder: Path,
        attempt: AttemptKey,
        repository: Repository,
        base: str,
        checkout: Checkout,
    ) -> None:
        self.path = folder / "tree"
        self.home = folder / "home"
        self.base = base
        self.start = base
        self.attempt = attempt
        self.repository = repository
        self._checkout = checkout
        self._git = Git(folder / "git")

    @classmethod
    def prepare(
        cls,
        *,
        root: Path,
        attempt: AttemptKey,
        repository: Repository,
        base: str,
        upstreams: Sequence[Upstream] = (),
        checkpoint: Upstream | None = None,
        checkout: Checkout = _ALL_FILES,
        runners: GitRunners | None = None,
    ) -> Workspace:
        """Make the workspace anew, whatever an earlier attempt left in its place.

        :param root: the worker's folder of workspaces and mirrors.
        :param attempt: who will work in it.
        :param repository: the run's repository.
        :param base: the run's base commit, as :func:`resolve_base` returned it once per run.
        :param upstreams: the steps that this one continues.
        :param checkpoint: the work of an earlier attempt that this one continues.
        :param checkout: what of the repository's files it holds.
        :param runners: makes what runs our own git; None runs it beside this process.
        :raises MergeConflict: if the upstreams' work does not go together.
        :raises InvalidDefinition: if the repository does not have the base.
        :raises AgentFailure: if the repository is needed and cannot be used.
        """
        folder = step_folder(root, attempt.step)
        with _local_failures():
            mirror = Mirror(root.absolute() / "mirrors", repository)
            if not repository.url:
                empty_root(mirror.git)
            workspace = cls(folder, attempt, repository, mirror.ensure(base), checkout)
            workspace._mirror_objects = mirror.objects
            workspace._make_folders(mirror)
            try:
                workspace._enter(runners)
                workspace._receive(upstreams, checkpoint)
                workspace._fill(checkpoint.commit if checkpoint else workspace.start)
            except BaseException:
                workspace.close()
                raise
        return workspace

    def close(self) -> None:
        """End what runs our git; harmless a second time, and the next command starts it again."""
        self._git.runner.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def checkpoint(self, trailers: Mapping[str, str], note: str) -> str | None:
        """Commit what the tree holds now to the attempt's ref; None if nothing has changed.

        The agent may go on editing meanwhile.

        :param trailers: git trailers, as ``Agents-Step``.
        :param note: the commit's subject.
        :raises PolicyViolation: if the tree holds another repository.
        """
        with _local_failures():
            tree = self._stage.snapshot(settled=False)
            if tree == self._tip_tree:
                return None
            commit = commit_tree(self._git, tree, (self._tip,), _message(note, trailers))
            self._git.run("update-ref", self.attempt.ref, commit)
        self._tip, self._tip_tree = commit, tree
        return commit

    def commit_step(self, subject: str, trailers: Mapping[str, str]) -> str:
        """Commit the step's work as one commit on its start; the run's local branch goes there.

        A step that changed nothing gets an empty commit, so that the branch tells of it.

        :param subject: the commit's subject.
        :param trailers: git trailers, as ``Agents-Step``.
        :raises PolicyViolation: if the tree holds another repository.
        """
        with _local_failures():
            self._stage.remove_program_folders()
            self._judged_tree = tree = self._stage.snapshot(settled=True)
            commit = commit_tree(self._git, tree, (self.start,), _message(subject, trailers))
            self._git.run("update-ref", self._branch_ref, commit)
            self._unkept = self._submodules.changed() if self._submodules else ()
            self._plain = self._lfs.changed(self._stage, self.start) if self._lfs else ()
        return commit

    @property
    def object_folders(self) -> list[Path]:
        """The folders from which the repository that the agent sees borrows its objects."""
        return [self._git.git_dir / "objects", self._mirror_objects]

    def settle_setup(self) -> None:
        """Take what is new in the tree now for no part of the step's work.

        New files, such as installed packages, stay and are never committed; what has changed of
        the repository's own files is as it was.
        """
        with _local_failures():
            left = self._stage.exclude_new()
            if self._submodules:
                self._submodules.exclude_new()
            self._restore(self._tip_tree)
        if left:
            info = self.path / ".git" / "info"
            info.mkdir(exist_ok=True)
            with (info / "exclude").open("ab") as file:
                file.write(left)

    def restore(self) -> None:
        """Make the tree what it was at the last :meth:`commit_step`; ignored files stay."""
        with _local_failures():
            self._restore(self._judged_tree)

    def _restore(self, tree: str) -> None:
        self._stage.restore(tree)
        if self._submodules:
            self._submodules.restore()

    def bundle(self, commit: str, to: Path) -> bool:
        """Write the commits from the run's base to ``commit`` as a git bundle.

        :param commit: a commit of this workspace.
        :param to: the file, written whole or not at all.
        :returns: False, and no file, where ``commit`` is the base itself.
        """
        if commit == self.base:
            return False
        part = to.with_name(f"{to.name}.part")
        # Where git can write it.
        made = self._git.git_dir / "made.bundle"
        with _local_failures():
            to.parent.mkdir(parents=True, exist_ok=True)
            self._git.run(
                "bundle", "create", "--quiet", str(made), self._ref(commit), f"^{self.base}"
            )
            copy_file(made, part)
            made.unlink()
        part.replace(to)
        return True

    def patch(self, commit: str) -> bytes:
        """Return what ``commit`` changes from the step's start, for ``git apply``."""
        with _local_failures():
            return self._git.run(
                "diff-tree", "-r", "--patch", "--binary", "--full-index", "--no-ext-diff",
                "--no-textconv", "--no-color", "--ignore-submodules=none", self.start, commit,
            )  # fmt: skip

    def changed_paths(self, commit: str) -> list[str]:
        """Return the paths that ``commit`` changes from the step's start; both of a rename."""
        with _local_failures():
            return self._git.names(
                "diff-tree", "-r", "-z", "--name-only", "--no-renames",
                "--ignore-submodules=none", self.start, commit,
            )  # fmt: skip

    def submodule_changes(self, commit: str) -> list[str]:
        """Return what has changed that a step cannot change: ``commit`` is the last step's.

        These are files of submodules, where the workspace holds them, and submodules of which a
        hosted agent's commit records another commit.
        """
        if not self._submodules:
            return []
        roots = set(self._submodules.paths)
        return [*self._unkept, *(path for path in self.changed_paths(commit) if path in roots)]

    def lfs_changes(self) -> list[str]:
        """Return the files that git-lfs manages, or should, and that the last step changed."""
        return list(self._plain)

    def fetch_branch(self, branch: str) -> str:
        """Fetch a branch of the repository, as a hosted agent pushed it, and return its commit.

        :raises AgentFailed: if there is no such branch.
        """
        commit = self._fetch_branch(branch)
        if commit is None:
            raise AgentFailed(
                f"branch {branch} is not in repository {self.repository.name}: the agent did not "
                f"push it, or it was deleted"
            )
        return commit

    def adopt(self, commit: str) -> None:
        """Make the tree that of ``commit``, as a hosted agent left it; what was in it is lost."""
        with _local_failures():
            # What runs our git sees this folder, and not what comes in its place.
            self.close()
            discard(self.path)
            self.path.mkdir()
            self._fill(commit)

    def push(self, commit: str, branch: str, *, replaces: Collection[str] = ()) -> str:
        """Have ``commit`` on a branch of the repository; harmless if it is there already.

        Where a sibling step has pushed meanwhile, the merge of both goes there. Commits of steps
        that are done anew leave the branch, so that it tells what an undisturbed run would.

        :param replaces: ids of the steps whose commits ``commit`` makes obsolete: the step itself
            and what depends on it.
        :returns: the branch's commit: ``commit``, or one that contains it.
        :raises MergeConflict: if the branch's work and this one do not go together; nothing was
            pushed then, and the step that depends on both will say the same.
        :raises AuthenticationFailed: if the credentials may not push.
        :raises PolicyViolation: if the repository's rules or hooks reject the push.
        :raises Unavailable: if the repository cannot be reached, or others keep on pushing.
        """
        self._need_remote()
        for _ in range(_PUSH_TRIES):
            there = self._remote_tip(branch)
            wanted = self._joined(commit, there, branch, replaces)
            if wanted == there or self._push_once(wanted, branch, there):
                return wanted
        raise Unavailable(
            f"branch {branch} of repository {self.repository.name} moved {_PUSH_TRIES} times while "
            f"this step pushed to it"
        )

    def read_output(self, path: str, max_bytes: int = 1_000_000) -> bytes:
        """Return the file that the agent wrote at ``path`` below the tree, following no link.

        :param path: path below the tree.
        :param max_bytes: the most that it may hold.
        :raises OutputInvalid: saying which, if it is missing, empty, too large, outside the
            workspace, a link, or no regular file.
        """
        return read_beneath(self.path, path, max_bytes)

    @property
    def _branch_ref(self) -> str:
        return f"refs/heads/{self.attempt.step.run_branch}"

    def _make_folders(self, mirror: Mirror) -> None:
        git_dir = self._git.git_dir
        submodules = git_dir.with_name("submodules")
        for folder in (self.path, self.home, git_dir, submodules):
            discard(folder)
        self.path.mkdir(parents=True)
        # Whatever permissions an agent gives to its files, nobody else gets to them.
        self.path.parent.chmod(0o700)
        self.home.mkdir(mode=0o700)
        run_git(["init", "--quiet", "--bare", "--template=", str(git_dir)], cwd=self.path)
        borrow(git_dir, mirror.objects)
        self._git.run("update-ref", "refs/agents/base", self.base)
        make_sparse(self._git, self._checkout.sparse)
        if self._checkout.submodules:
            found = find_submodules(mirror, self.base, self._checkout.submodules)
            self._submodules = SubmoduleFiles(found, self.path, submodules) if found else None
        if self._checkout.lfs:
            self._lfs = LfsFiles(mirror, self.base, self.path)
        self._guard = GitGuard(git_dir)

    def _enter(self, runners: GitRunners | None) -> None:
        """Let our git run where ``runners`` says, now that all that it may see is there."""
        if runners is not None:
            git_dir = self._git.git_dir
            writable, readable = [self.path, git_dir], [git_dir / "config", self._mirror_objects]
            if self._submodules:
                writable.append(self._submodules.folder)
                readable += self._submodules.readable
            runner = runners(writable, readable)
            self._git = replace(self._git, runner=runner)
            if self._submodules:
                self._submodules.use(runner)

    @contextlib.contextmanager
    def _remote(self, timeout: float = TRANSFER_TIMEOUT) -> Iterator[Git]:
        """Yield our git for calls to the repository, with its credentials."""
        with _local_failures():
            # Nothing that an agent prepared runs any more when we look, and after.
            self.close()
            self._guard.check()
        with self.repository.remote(replace(self._git, runner=PLAIN), timeout) as git:
            yield git

    def _receive(self, upstreams: Sequence[Upstream], checkpoint: Upstream | None) -> None:
        for count, work in enumerate([*upstreams, *([checkpoint] if checkpoint else [])]):
            if work.bundle:
                self._unbundle(work, count)
            if self._git.commit(work.commit) is None:
                raise AgentFailed(
                    f"commit {work.commit} of step {work.step_id!r} is neither in its checkpoint "
                    f"nor in the repository; clear that step so that it runs again"
                )
        if upstreams:
            sides = [Side(f"step {u.step_id!r}", u.commit) for u in upstreams]
            self.start = merge(self._git, sides)

    def _unbundle(self, work: Upstream, count: int) -> None:
        # Where git can read it.
        here = self._git.git_dir / "received.bundle"
        try:
            assert work.bundle is not None
            copy_file(work.bundle, here)
            self._git.run(
                "fetch", "--quiet", "--no-tags", "--no-write-fetch-head",
                str(here), f"+refs/*:refs/agents/received/{count}/*",
            )  # fmt: skip
        except (GitError, OSError) as error:
            told = error.reason if isinstance(error, GitError) else str(error)
            raise AgentFailed(
                f"the checkpoint of step {work.step_id!r} cannot be read: {told}",
                raw=error.stderr if isinstance(error, GitError) else None,
            ) from error
        finally:
            here.unlink(missing_ok=True)

    def _fill(self, commit: str) -> None:
        apart = self._submodules.paths if self._submodules else ()
        self._stage = Stage(self._git, self.path, apart)
        self._stage.checkout(commit, wanted=self._left_out(commit))
        if commit == self.base:
            # Later, a step may have removed what a pattern names.
            check_sparse(self._git, self._checkout.sparse, self.repository.name)
        if self._submodules:
            self._submodules.fill()
        if self._lfs:
            self._lfs.fill(self._stage)
        self._tip = commit
        self._tip_tree = self._git.line("rev-parse", f"{commit}^{{tree}}")
        self._make_agent_repository(commit)

    def _left_out(self, commit: str) -> list[str]:
        """Return what the run itself has written, where a sparse checkout might leave it out."""
        if not self._checkout.sparse or commit == self.base:
            return []
        return self._git.names(
            "diff-tree", "-r", "-z", "--name-only", "--no-renames", "--diff-filter=AMT",
            self.base, commit,
        )  # fmt: skip

    def _make_agent_repository(self, commit: str) -> None:
        """Make the ``.git`` that the agent sees: on the run's branch, at the step's start."""
        git_dir = self.path / ".git"
        runner = self._git.runner
        run_git(["init", "--quiet", "--template=", str(self.path)], cwd=self.path, runner=runner)
        borrow(git_dir, self._git.git_dir / "objects")
        agent = Git(git_dir, work_tree=self.path, runner=runner)
        with (git_dir / "config").open("a") as config:
            config.write(f"[user]\n\tname = {IDENTITY[0]}\n\temail = {IDENTITY[1]}\n")
        make_sparse(agent, self._checkout.sparse)
        agent.run("update-ref", self._branch_ref, self.start)
        agent.run("symbolic-ref", "HEAD", self._branch_ref)
        # With the index come the files' times, so that the agent's first status reads no file.
        copy_file(self._stage.index, git_dir / "index")
        if commit != self.start:
            agent.run("read-tree", "-m", self.start)

    def _ref(self, commit: str) -> str:
        """Return a ref that stands at ``commit``, since a bundle holds refs only."""
        for ref in (self.attempt.ref, self._branch_ref):
            if self._git.commit(ref) == commit:
                return ref
        ref = f"refs/agents/commits/{commit}"
        self._git.run("update-ref", ref, commit)
        return ref

    def _need_remote(self) -> None:
        if not self.repository.url:
            raise InvalidDefinition(
                "this run has an empty repository of its own, which nobody else can reach; name a "
                "repository in the workflow"
            )

    def _fetch_branch(self, branch: str) -> str | None:
        self._need_remote()
        ref = f"refs/heads/{branch}"
        here = "refs/agents/fetched"
        with self._remote() as git:
            if not is_ref(git, ref):
                raise AgentFailed(f"{branch!r} is no name of a branch")
            try:
                git.run(
                    "fetch", "--quiet", "--no-tags", "--no-write-fetch-head",
                    "--", self.repository.url, f"+{ref}:{here}",
                )  # fmt: skip
            except GitError as error:
                if _ABSENT.search(error.stderr):
                    return None
                raise
        return self._git.commit(here)

    def _remote_tip(self, branch: str) -> str | None:
        ref = f"refs/heads/{branch}"
        with self._remote(QUERY_TIMEOUT) as git:
            listing = git.run("ls-remote", "--heads", "--", self.repository.url, ref)
        for line in listing.decode(errors="replace").splitlines():
            commit, _, name = line.partition("\t")
            if name == ref:
                return commit
        return None

    def _joined(
        self, commit: str, there: str | None, branch: str, replaces: Collection[str]
    ) -> str:
        if there is None or there == commit:
            return commit
        if self._git.commit(there) is None:
            self._fetch_branch(branch)
        with _local_failures():
            step = Side(f"step {self.attempt.step.step_id!r}", commit)
            return merge(self._git, [*self._siblings(there, commit, branch, replaces), step])

    def _siblings(
        self, there: str, commit: str, branch: str, replaces: Collection[str]
    ) -> list[Side]:
        """Return what of the branch stays beside ``commit``: all of it, if nothing is replaced."""
        listing = self._git.run(
            "log", "--no-merges",
            "--format=%H %(trailers:key=Agents-Step,valueonly,separator=%x20)",
            there, f"^{commit}", f"^{self.base}",
        )  # fmt: skip
        beside = [line.partition(" ")[::2] for line in listing.decode().splitlines()]
        # A commit that no step made is a person's, who may have built on any of the others.
        if not all(step for _, step in beside) or not {step for _, step in beside} & set(replaces):
            return [Side(f"branch {branch!r}", there)]
        return [Side(f"step {step!r}", sha) for sha, step in beside if step not in replaces]

    def _push_once(self, commit: str, branch: str, there: str | None) -> bool:
        """Push; return False if the branch is no longer where it was seen."""
        ref = f"refs/heads/{branch}"
        with self._remote() as git:
            try:
                git.run(
                    "push", "--quiet", "--no-verify", f"--force-with-lease={ref}:{there or ''}",
                    "--", self.repository.url, f"{commit}:{ref}",
                )  # fmt: skip
            except GitError as error:
                if _MOVED.search(error.stderr):
                    return False
                raise
        return True


def _message(subject: str, trailers: Mapping[str, str]) -> str:
    """Return a commit message whose last paragraph is git trailers, as interpret-trailers reads."""
    lines = [f"{name}: {' '.join(value.split())}" for name, value in trailers.items()]
    return "\n".join([" ".join(subject.split()), "", *lines]).rstrip() + "\n"


@contextlib.contextmanager
def _local_failures() -> Iterator[None]:
    try:
        yield
    except GitError as error:
        raise AgentFailed(
            f"the workspace's git failed: {error.reason}", raw=error.stderr or None
        ) from error
    except OSError as error:
        raise AgentFailed(f"the workspace cannot be written or read: {error}") from error
