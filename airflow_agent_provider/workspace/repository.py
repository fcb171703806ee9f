"""The repository of a run: what it is, its mirror on this worker, and the commit to start from.

The mirror is a bare repository per URL that holds what any run on this worker has fetched.
Workspaces borrow its objects, so nothing is ever pruned from it.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from airflow_agent_provider.agents.failures import InvalidDefinition, Unavailable
from airflow_agent_provider.workspace.git import Git, GitError, redact, run_git
from airflow_agent_provider.workspace.lock import file_lock
from airflow_agent_provider.workspace.remote import (
    QUERY_TIMEOUT,
    TRANSFER_TIMEOUT,
    remote_failure,
)

#: Who the commits of ours are by.
IDENTITY = ("Airflow agents", "agents@airflow.invalid")

_MIN_GIT = (2, 38)
_LOCK_WAIT = 1800.0
#: Each fetch adds a pack, and every pack slows the look-up of an object.
_MAX_PACKS = 50
#: Seconds after which the unfinished pack of a killed fetch is nobody's any more.
_LEFT_OVER = 86400.0
_SHOWN_REFS = 8
_SHA = re.compile(r"[0-9a-f]{7,64}")
_FULL_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SCP_LIKE = re.compile(r"[^/]+:")
_EPOCH = "946684800 +0000"


def _no_credentials() -> AbstractContextManager[Mapping[str, str]]:
    return contextlib.nullcontext({})


@dataclass(frozen=True)
class Repository:
    """The git repository that a run works on.

    :param url: URL or absolute path; empty for a new empty repository per run.
    :param ref: branch, tag or commit to start from; empty takes the repository's default branch.
    :param env: git's environment for calls to the repository, and for nothing else.
    :param conn_id: the connection that the credentials are of, for error texts.
    :param credentials: gives more such environment while a call runs, so that keys and tokens are
        on this worker no longer than git needs them.
    """

    url: str = ""
    ref: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    conn_id: str = ""
    credentials: Callable[[], AbstractContextManager[Mapping[str, str]]] = field(
        default=_no_credentials, compare=False, repr=False
    )

    @property
    def name(self) -> str:
        """The URL as texts show it, without credentials."""
        return redact(self.url, self.env)

    @contextlib.contextmanager
    def remote(self, git: Git, timeout: float = TRANSFER_TIMEOUT) -> Iterator[Git]:
        """Yield ``git`` with what calls to the repository need.

        :param git: the git directory at this end.
        :param timeout: seconds that a call may take.
        :raises AgentFailure: for a GitError inside the context, of the class that fits.
        """
        # The deployment's own settings, such as a proxy: the hook's are numbered after them.
        deployment = {k: v for k, v in os.environ.items() if k.startswith("GIT_CONFIG_")}
        deployment.pop("GIT_CONFIG_GLOBAL", None)
        deployment.pop("GIT_CONFIG_NOSYSTEM", None)
        with self.credentials() as credentials:
            env = {**deployment, **self.env, **credentials}
            try:
                yield git.having(env=env, timeout=timeout)
            except GitError as error:
                raise remote_failure(error, self.name, self.conn_id) from error


class Mirror:
    """The bare repository on this worker that holds what was fetched of one repository.

    :param mirrors: the folder of all mirrors.
    :param repository: the repository.
    """

    def __init__(self, mirrors: Path, repository: Repository) -> None:
        check_git()
        self.repository = repository
        digest = hashlib.sha256(repository.name.encode()).hexdigest()[:32]
        self.git = Git(mirrors / digest)
        self._lock = mirrors / f"{digest}.lock"
        if not self.git.git_dir.is_dir():
            self._create()

    @property
    def objects(self) -> Path:
        """The folder whose objects workspaces borrow."""
        return self.git.git_dir / "objects"

    def ensure(self, commit: str) -> str:
        """Return ``commit``'s full id, fetching it if it is not here yet.

        :raises InvalidDefinition: if the repository does not have it.
        """
        if known := self.git.commit(commit):
            return known
        if not self.repository.url:
            raise InvalidDefinition(
                f"commit {commit} is not in this run's own empty repository; name the repository "
                f"that it is of"
            )
        # A server may refuse to send a commit by its id, so its branches and tags come next.
        for refspecs in (
            [f"+{commit}:refs/agents/commits/{commit}"] if _FULL_SHA.fullmatch(commit) else [],
            ["+refs/heads/*:refs/agents/all/heads/*", "+refs/tags/*:refs/agents/all/tags/*"],
        ):
            if refspecs and self._try_fetch(refspecs) and (known := self.git.commit(commit)):
                return known
        raise InvalidDefinition(
            f"commit {commit} is not in repository {self.repository.name}; if its branch was "
            f"rewritten since, clear the whole run so that it starts anew"
        )

    def fetch_lfs(self, commit: str) -> None:
        """Have the objects of git-lfs that a commit's files need, below ``lfs/objects``."""
        # The mirror has no HEAD, hence no .lfsconfig that could name another server.
        remote = f"remote.origin.url={self.repository.url}"
        with (
            file_lock(self._lock, wait=_LOCK_WAIT, what=f"the mirror of {self.repository.name}"),
            self.repository.remote(self.git) as git,
        ):
            git.run("-c", remote, "lfs", "fetch", "origin", commit)

    def default_branch(self) -> str:
        """Fetch the repository's default branch and return its commit."""
        if not self._try_fetch(["+HEAD:refs/agents/head"]):
            raise InvalidDefinition(
                f"repository {self.repository.name} has no commit on its default branch; push a "
                f"first one, or name a ref"
            )
        return self._fetched("refs/agents/head", "HEAD")

    def fetch(self, ref: str) -> str:
        """Fetch the ref of this full name and return its commit."""
        # Not the ref's own name: where "a" was a branch and now "a/b" is, the two cannot coexist.
        here = f"refs/agents/fetched/{hashlib.sha256(ref.encode()).hexdigest()[:32]}"
        if not is_ref(self.git, ref) or not self._try_fetch([f"+{ref}:{here}"]):
            raise InvalidDefinition(f"ref {ref} is not in repository {self.repository.name}")
        return self._fetched(here, ref)

    def remote_refs(self) -> dict[str, str]:
        """Return the repository's branches and tags by full name, each with its commit."""
        with self.repository.remote(self.git, QUERY_TIMEOUT) as git:
            listing = git.run("ls-remote", "--heads", "--tags", "--", self.repository.url)
        refs: dict[str, str] = {}
        for line in listing.decode(errors="replace").splitlines():
            object_id, _, name = line.partition("\t")
            # An annotated tag comes twice; the second line, of this ending, has its commit.
            refs[name.removesuffix("^{}")] = object_id
        return refs

    def _fetched(self, here: str, ref: str) -> str:
        commit = self.git.commit(here)
        if commit is None:
            raise InvalidDefinition(
                f"ref {ref} of repository {self.repository.name} is no commit; name a branch, a "
                f"tag of a commit, or a commit"
            )
        return commit

    def _try_fetch(self, refspecs: list[str]) -> bool:
        """Fetch; return False if the repository has no such ref or commit."""
        with file_lock(self._lock, wait=_LOCK_WAIT, what=f"the mirror of {self.repository.name}"):
            remove_stale_locks(self.git.git_dir)
            with self.repository.remote(self.git) as git:
                try:
                    git.run(
                        "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--prune",
                        "--force", "--", self.repository.url, *refspecs,
                    )  # fmt: skip
                except GitError as error:
                    if _lacks_ref(error):
                        return False
                    raise
            self._tidy()
        return True

    def _tidy(self) -> None:
        """Bound the number of packs; nothing in them is dropped, workspaces borrow from them."""
        packs = self.objects / "pack"
        for left in packs.glob("tmp_*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _LEFT_OVER:
                    left.unlink()
        if len(list(packs.glob("*.pack"))) > _MAX_PACKS:
            self.git.run("repack", "--geometric=2", "-d", "--quiet")

    def _create(self) -> None:
        with file_lock(self._lock, wait=_LOCK_WAIT, what=f"the mirror of {self.repository.name}"):
            if self.git.git_dir.is_dir():
                return
            made = self.git.git_dir.with_name(f"{self.git.git_dir.name}.{uuid.uuid4().hex}")
            run_git(["init", "--quiet", "--bare", "--template=", str(made)], cwd=made.parent)
            made.rename(self.git.git_dir)


def resolve_base(repository: Repository, mirrors: Path) -> str:
    """Return the commit that a run on ``repository`` starts from, and have it in the mirror.

    :param repository: the repository and the ref.
    :param mirrors: the folder of all mirrors on this worker.
    :raises InvalidDefinition: if there is no such repository or ref, in one line.
    :raises AuthenticationFailed: if the repository refuses the credentials.
    :raises Unavailable: if the repository cannot be reached.
    """
    _check_url(repository)
    mirror = Mirror(mirrors, repository)
    if not repository.url:
        return empty_root(mirror.git)
    ref = repository.ref
    if ref in ("", "HEAD"):
        return mirror.default_branch()
    if ref.startswith("refs/"):
        return mirror.fetch(ref)
    refs = mirror.remote_refs()
    for name in (f"refs/heads/{ref}", f"refs/tags/{ref}"):
        if name in refs:
            return mirror.git.commit(refs[name]) or mirror.fetch(name)
    if _SHA.fullmatch(ref):
        return mirror.ensure(ref)
    raise InvalidDefinition(
        f"ref {ref} is not in repository {repository.name}; it has: {_shown(ref, refs)}"
    )


def empty_root(git: Git) -> str:
    """Make the root commit of an empty repository; every worker makes the same one."""
    tree = git.line("hash-object", "-t", "tree", "-w", "--stdin")
    return commit_tree(git, tree, (), "Empty repository\n", date=_EPOCH)


def commit_tree(
    git: Git, tree: str, parents: tuple[str, ...], message: str, *, date: str = ""
) -> str:
    """Make a commit by :data:`IDENTITY` and return its id.

    :param date: git's raw date; now where empty.
    """
    name, email = IDENTITY
    env = {
        "GIT_AUTHOR_NAME": name,
        "GIT_AUTHOR_EMAIL": email,
        "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": email,
    }
    if date:
        env |= {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    arguments = [word for parent in parents for word in ("-p", parent)]
    return git.having(env=env).line("commit-tree", tree, *arguments, stdin=message.encode())


def borrow(git_dir: Path, objects: Path) -> None:
    """Let a git directory read another one's objects.

    :param objects: the other one's folder of objects.
    """
    alternates = git_dir / "objects" / "info" / "alternates"
    alternates.parent.mkdir(exist_ok=True)
    alternates.write_text(f"{objects}\n")


def is_ref(git: Git, ref: str) -> bool:
    """Return whether ``ref`` is a full ref name that git accepts, without wildcards."""
    return git.complete("check-ref-format", ref, accept=(0, 1)).returncode == 0


def remove_stale_locks(git_dir: Path) -> None:
    """Remove the lock files that a killed git left; only for who holds the directory alone."""
    for lock in (*git_dir.glob("*.lock"), *(git_dir / "refs").rglob("*.lock")):
        lock.unlink(missing_ok=True)


def _check_url(repository: Repository) -> None:
    url = repository.url
    if not url:
        if repository.ref not in ("", "HEAD"):
            raise InvalidDefinition(
                f"ref {repository.ref} is of no repository: name one, or leave out the ref"
            )
        return
    if any(not character.isprintable() for character in url + repository.ref):
        raise InvalidDefinition(f"repository {url!r}, ref {repository.ref!r}: not printable text")
    local = not _SCP_LIKE.match(url)
    if local and not Path(url).is_absolute():
        raise InvalidDefinition(
            f"repository {repository.name} is a relative path; give a URL or an absolute path"
        )


def _lacks_ref(error: GitError) -> bool:
    return bool(
        re.search(
            r"couldn't find remote ref|not our ref|unadvertised object|no such remote ref",
            error.stderr,
        )
    )


def _shown(ref: str, refs: Mapping[str, str]) -> str:
    names = [name.removeprefix("refs/heads/").removeprefix("refs/tags/") for name in refs]
    if not names:
        return "no branch and no tag"
    near = difflib.get_close_matches(ref, names, n=3, cutoff=0.5)
    ordered = list(dict.fromkeys([*near, *names]))
    more = len(ordered) - _SHOWN_REFS
    return ", ".join(ordered[:_SHOWN_REFS]) + (f" and {more} more" if more > 0 else "")


_checked = False


def check_git() -> None:
    """Make sure that this worker has a git that is new enough; Unavailable where it has not."""
    global _checked
    if _checked:
        return
    try:
        text = run_git(["version"], cwd=Path("/")).stdout.decode()
    except GitError as error:
        raise Unavailable(f"this worker cannot run git: {error.reason}") from error
    found = re.search(r"(\d+)\.(\d+)", text)
    if not found or (int(found[1]), int(found[2])) < _MIN_GIT:
        raise Unavailable(
            f"git {_MIN_GIT[0]}.{_MIN_GIT[1]} or newer is needed, this worker has: {text.strip()}"
        )
    _checked = True
