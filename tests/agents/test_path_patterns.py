"""Which paths a pattern names."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_agent_provider.agents.path_patterns import matches_any, pattern_fault


@pytest.mark.parametrize(
    ("pattern", "named", "not_named"),
    [
        ("README.md", ["README.md"], ["docs/README.md", "README_md", "readme.md"]),
        (".github", [".github", ".github/workflows/ci.yml"], [".githubx", "a/.github/b"]),
        ("src/**", ["src/a.py", "src/a/b.py", "src/.env"], ["src", "srcs/a.py", "lib/src/a.py"]),
        ("**", ["a", ".env", "a/b\nc"], []),
        ("**/*.py", ["a.py", "src/a.py", "a/b/.c.py"], ["a.pyc", "a.py/b"]),
        ("src/**/test_*.py", ["src/test_a.py", "src/a/b/test_.py"], ["test_a.py", "src/a/test.py"]),
        ("src/*", ["src/a", "src/.a"], ["src/a/b"]),
        ("app/?id?/page.tsx", ["app/[id]/page.tsx"], ["app/id/page.tsx", "app//id//page.tsx"]),
        ("**/**/a", ["a", "b/a", "b/c/a"], ["b/ca"]),
        ("a/a/b", ["a/a/b"], ["a/b"]),
        (".github/**", [".github/workflows/ci.yml"], ["xgithub/ci.yml"]),
    ],
)
def test_a_pattern_names_paths(pattern: str, named: list[str], not_named: list[str]) -> None:
    assert pattern_fault(pattern) is None
    assert [path for path in [*named, *not_named] if matches_any(path, [pattern])] == named


def test_one_of_several_patterns_is_enough() -> None:
    assert matches_any("a", ["b", "a"])
    assert not matches_any("a", ["b", "c"])
    assert not matches_any("a", [])


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("/etc/*", "leads out of the workspace; a pattern below it, without '..'"),
        ("src/../../*", "leads out of the workspace; a pattern below it, without '..'"),
        ("!src/**", "starts with '!'; write the pattern alone, under 'allow' or 'deny'"),
        (
            "src/*.{ts,tsx}",
            "holds '{'; only *, ? and ** are special, so write ? in its place",
        ),
        ("src/[ab].py", "holds '['; only *, ? and ** are special, so write ? in its place"),
        ("src/", "names no file; write 'src/**' for all that is in a folder"),
        ("./src/*", "is no path of the workspace; write a pattern such as src/**"),
        ("", "is no path of the workspace; write a pattern such as src/**"),
        ("src//*", "is no path of the workspace; write a pattern such as src/**"),
        (
            "src/**.py",
            "has '**' beside other characters; '**' is a whole name, as in src/**/*.py",
        ),
    ],
)
def test_a_pattern_that_would_name_something_else_is_refused(pattern: str, fault: str) -> None:
    assert pattern_fault(pattern) == fault


NAMES = st.text(st.sampled_from("ab.?*-é\n"), min_size=1, max_size=3)
PATTERNS = st.lists(NAMES | st.just("**"), min_size=1, max_size=4).map("/".join)
PATHS = st.lists(st.text(st.sampled_from("ab.-é"), min_size=1, max_size=3), min_size=1, max_size=3)


@given(st.text(st.sampled_from("ab/.*?![]{}\\,"), max_size=8) | st.text(max_size=8))
def test_any_text_is_refused_or_names_what_is_below_the_workspace(pattern: str) -> None:
    fault = pattern_fault(pattern)
    if fault is not None:
        assert "; " in fault
    else:
        assert not matches_any("/a", [pattern])
        assert matches_any(pattern, [pattern])


@given(PATTERNS, st.lists(PATHS, max_size=6))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_names_the_files_that_pythons_own_search_finds(
    tmp_path_factory: pytest.TempPathFactory, pattern: str, paths: list[list[str]]
) -> None:
    if pattern_fault(pattern) is not None:
        return
    root = tmp_path_factory.mktemp("tree")
    for path in paths:
        make_file(root, path)
    files = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}

    found = glob.glob(pattern, root_dir=root, recursive=True, include_hidden=True)  # noqa: PTH207

    # It takes a plain file for a folder where the pattern goes on after it, and calls it 'a/'.
    expected = {name for name in found if name in files}
    if not set(pattern) & set("*?"):
        expected |= {file for file in files if file.startswith(f"{pattern}/")}
    assert {file for file in files if matches_any(file, [pattern])} == expected


def make_file(root: Path, path: list[str]) -> None:
    """Make an empty file, unless its path leads elsewhere or is taken."""
    if {".", ".."}.isdisjoint(path):
        try:
            root.joinpath(*path).parent.mkdir(parents=True, exist_ok=True)
            root.joinpath(*path).touch()
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            pass
