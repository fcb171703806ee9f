from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import InvalidDefinition, Unavailable
from airflow_agent_provider.workspace import lock, repository
from airflow_agent_provider.workspace.repository import Mirror, Repository, resolve_base

from .conftest import Origin

pytestmark = pytest.mark.integration


def resolve(origin: Origin, root: Path, ref: str = "") -> str:
    return resolve_base(Repository(str(origin.path), ref), root / "mirrors")


def test_without_a_ref_the_default_branch_counts(origin: Origin, root: Path) -> None:
    main = origin.at("main")
    origin.commit({"x": "x"}, branch="topic")
    assert resolve(origin, root) == main
    origin.git("symbolic-ref", "HEAD", "refs/heads/topic", cwd=origin.path)
    assert resolve(origin, root) == origin.at("topic")


def test_a_branch_is_followed(origin: Origin, root: Path) -> None:
    assert resolve(origin, root, "main") == origin.at("main")
    newer = origin.commit({"more": "more"})
    assert resolve(origin, root, "main") == newer
    assert resolve(origin, root, "refs/heads/main") == newer


def test_a_branch_wins_over_a_tag_of_the_same_name(origin: Origin, root: Path) -> None:
    origin.git("tag", "both")
    origin.git("push", "-q", "origin", "refs/tags/both")
    newer = origin.commit({"x": "x"}, branch="both")
    assert resolve(origin, root, "both") == newer


def test_tags_count_by_their_commit(origin: Origin, root: Path) -> None:
    commit = origin.at("main")
    origin.git("tag", "light")
    origin.git("tag", "-a", "-m", "note", "annotated")
    origin.git("push", "-q", "--tags", "origin")
    origin.commit({"x": "x"})
    assert resolve(origin, root, "light") == commit
    assert resolve(origin, root, "annotated") == commit
    # And from the mirror, without a fetch.
    assert resolve(origin, root, "annotated") == commit


def test_a_tag_of_no_commit_is_refused(origin: Origin, root: Path) -> None:
    origin.git("tag", "tree", "HEAD^{tree}")
    origin.git("push", "-q", "--tags", "origin")
    with pytest.raises(InvalidDefinition, match="is no commit"):
        resolve(origin, root, "tree")


def test_a_commit_may_be_named_in_full_or_short(origin: Origin, root: Path) -> None:
    commit = origin.at("main")
    origin.commit({"x": "x"})
    assert resolve(origin, root, commit) == commit
    assert resolve(origin, root, commit[:10]) == commit


def test_a_short_commit_is_found_on_a_cold_worker(origin: Origin, root: Path) -> None:
    commit = origin.at("main")
    origin.commit({"x": "x"})
    assert resolve(origin, root, commit[:10]) == commit


def test_a_commit_that_is_nowhere(origin: Origin, root: Path) -> None:
    with pytest.raises(InvalidDefinition, match=f"commit {'a' * 40} is not in repository"):
        resolve(origin, root, "a" * 40)


def test_a_missing_ref_is_one_line_with_what_there_is(origin: Origin, root: Path) -> None:
    for name in ("release", *(f"topic-{n}" for n in range(20))):
        origin.git("push", "-q", "origin", f"HEAD:refs/heads/{name}")
    with pytest.raises(InvalidDefinition) as caught:
        resolve(origin, root, "relaese")
    reason = caught.value.reason
    assert reason.startswith(f"ref relaese is not in repository {origin.path}; it has: release, ")
    assert reason.endswith("and 14 more")
    assert "\n" not in reason


@pytest.mark.parametrize("ref", ["*", "--upload-pack=touch x", "a..b", "main:main", "ma in"])
def test_odd_refs_are_only_missing(origin: Origin, root: Path, ref: str) -> None:
    with pytest.raises(InvalidDefinition, match="is not in repository"):
        resolve(origin, root, ref)


@pytest.mark.parametrize("ref", ["refs/heads/gone", "refs/heads/*"])
def test_a_missing_full_ref(origin: Origin, root: Path, ref: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        resolve(origin, root, ref)
    assert ref in caught.value.reason


@pytest.mark.parametrize("kind", ["path", "file"])
def test_a_repository_that_does_not_exist(tmp_path: Path, kind: str) -> None:
    gone = tmp_path / "gone"
    url = str(gone) if kind == "path" else gone.as_uri()
    for ref in ("", "main"):
        with pytest.raises(InvalidDefinition) as caught:
            resolve_base(Repository(url, ref), tmp_path / "mirrors")
        assert caught.value.reason.startswith(f"repository {url} does not exist")
        assert "\n" not in caught.value.reason


@pytest.mark.parametrize("url", ["relative/path", "ext::sh -c 'touch /tmp/x'", "-oProxy", "a\nb"])
def test_other_urls_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidDefinition):
        resolve_base(Repository(url), tmp_path / "mirrors")


def test_a_file_url_works(origin: Origin, root: Path) -> None:
    assert resolve_base(Repository(origin.path.as_uri()), root / "mirrors") == origin.at("main")


def test_a_remote_without_commits(tmp_path: Path, root: Path) -> None:
    empty = Origin(tmp_path / "fresh")
    with pytest.raises(InvalidDefinition, match="no commit on its default branch"):
        resolve(empty, root)
    with pytest.raises(InvalidDefinition, match="no branch and no tag"):
        resolve(empty, root, "main")


def test_every_worker_makes_the_same_empty_repository(tmp_path: Path) -> None:
    first = resolve_base(Repository(), tmp_path / "a")
    assert resolve_base(Repository(), tmp_path / "b") == first
    assert resolve_base(Repository(ref="HEAD"), tmp_path / "a") == first


def test_a_ref_of_no_repository(tmp_path: Path) -> None:
    with pytest.raises(InvalidDefinition, match="ref main is of no repository"):
        resolve_base(Repository(ref="main"), tmp_path)


def test_locks_of_a_killed_git_do_not_matter(origin: Origin, root: Path) -> None:
    resolve(origin, root)
    newer = origin.commit({"x": "x"})
    git_dir = Mirror(root / "mirrors", Repository(str(origin.path))).git.git_dir
    for name in ("packed-refs.lock", "refs/agents/head.lock", "config.lock"):
        (git_dir / name).touch()
    assert resolve(origin, root) == newer


def test_a_branch_may_become_the_folder_of_another(origin: Origin, root: Path) -> None:
    origin.commit({"x": "x"}, branch="feature")
    resolve(origin, root, "feature")
    origin.git("push", "-q", "origin", ":feature")
    commit = origin.commit({"y": "y"}, branch="feature/one")
    assert resolve(origin, root, "feature/one") == commit
    shutil.rmtree(root)
    assert resolve(origin, root, commit[:12]) == commit


def test_a_base_whose_branch_was_rewritten_is_named(origin: Origin, root: Path) -> None:
    lost = origin.commit({"x": "x"}, branch="topic")
    origin.git("reset", "-q", "--hard", "HEAD~1")
    origin.git("push", "-q", "--force", "origin", "HEAD:topic")
    origin.git("reflog", "expire", "--expire=now", "--all", cwd=origin.path)
    origin.git("gc", "-q", "--prune=now", cwd=origin.path)
    mirror = Mirror(root / "mirrors", Repository(str(origin.path)))
    with pytest.raises(InvalidDefinition, match="if its branch was rewritten"):
        mirror.ensure(lost)


def test_the_mirror_bounds_its_packs(
    origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_MAX_PACKS", 2)
    commits = []
    for n in range(6):
        commits.append(origin.commit({f"f{n}": "x" * n}))
        resolve(origin, root)
    mirror = Mirror(root / "mirrors", Repository(str(origin.path)))
    assert len(list((mirror.objects / "pack").glob("*.pack"))) <= 3
    assert [mirror.git.commit(commit) for commit in commits] == commits


def test_processes_may_make_the_mirror_at_once(origin: Origin, root: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        results = pool.starmap(resolve, [(origin, root)] * 8)
        # To be ended by a signal, they would have to heed it; Airflow sets a handler of its own.
        pool.close()
        pool.join()
    assert set(results) == {origin.at("main")}
    assert len([path for path in (root / "mirrors").iterdir() if path.is_dir()]) == 1


def test_a_lock_that_is_never_freed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with (
        lock.file_lock(path, wait=1, what="it"),
        pytest.raises(Unavailable, match=r"has worked on it for more than 0\.2 s"),
        lock.file_lock(path, wait=0.2, what="it"),
    ):
        pass


def test_credentials_of_the_url_are_never_shown() -> None:
    shown = Repository("https://ada:s3cret@git.example/x.git").name
    assert shown == "https://***@git.example/x.git"
