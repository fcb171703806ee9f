"""Which repositories a run may name, and where a repository is."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import AgentFailure, PolicyViolation
from airflow_agent_provider.workspace.allowed import AllowList, Place, place_of
from airflow_agent_provider.workspace.repository import Repository, resolve_base


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://github.com/you/it.git", Place("https", "github.com", "/you/it.git")),
        ("HTTPS://GitHub.com:443/you", Place("https", "github.com", "/you")),
        ("https://example.org:8443/a", Place("https", "example.org:8443", "/a")),
        ("git@github.com:you/it", Place("ssh", "github.com", "/you/it")),
        ("ssh://git@github.com:22/you/it", Place("ssh", "github.com", "/you/it")),
        ("/srv/git/it.git", Place("file", "", "/srv/git/it.git")),
        ("file:///srv/git/it.git", Place("file", "", "/srv/git/it.git")),
        ("https://[::1]:8443/a", Place("https", "[::1]:8443", "/a")),
        ("", None),
        ("it.git", None),
        ("~/it.git", None),
        ("ext::sh -c id", None),
        ("ftp://example.org/a", None),
        ("file://host/srv/it.git", None),
        ("https://user@github.com/you/it", None),
        ("https://github.com@evil.example/you/it", None),
        ("https://github.com/you/../they/it", None),
        ("https://github.com/you/%2e%2e/they/it", None),
        ("https://github.com/you/..%2fthey/it", None),
        ("https://github.com/you?x=/you/it", None),
        ("https://github.com\\@evil.example/you", None),
        ("https://github.com/you\n/it", None),
        ("/srv/git/../../etc/it.git", None),
    ],
)
def test_where_a_url_leads(url: str, expected: Place | None) -> None:
    assert place_of(url) == expected


@pytest.mark.parametrize(
    ("patterns", "url", "expected"),
    [
        ("https://*", "https://example.org/any/it", True),
        ("https://*", "http://example.org/any/it", False),
        ("https://*", "git@example.org:any/it", False),
        ("https://*", "/srv/git/it.git", False),
        ("https://*", "file:///srv/git/it.git", False),
        ("https://github.com/you/*", "https://github.com/you/it", True),
        ("https://github.com/you/*", "https://github.com/you/deep/it.git", True),
        ("https://github.com/you/*", "https://github.com/young/it", False),
        ("https://github.com/you/*", "https://github.com.evil.example/you/it", False),
        ("https://github.com/you/*", "https://github.com:444/you/it", False),
        ("https://github.com/you/it", "https://github.com/you/it.git", True),
        ("https://github.com/you/it", "https://github.com/you/it/", True),
        ("https://github.com/you/it.git", "https://github.com/you/it2.git", False),
        ("https://github.com*", "https://github.com.evil.example/it", True),
        ("https://*.example.org", "https://evil.example/a.example.org/it", False),
        ("https://*.example.org", "https://git.example.org/it", True),
        ("ssh://git@github.com/you/*", "git@github.com:you/it", True),
        ("git@github.com:you/*", "ssh://git@github.com/you/it", True),
        ("/srv/git/*", "file:///srv/git/it.git", True),
        ("/srv/git/*", "/srv/other/it.git", False),
        ("https://[::1]/*", "https://[::1]/it", True),
        ("https://[::1]/*", "https://:/it", False),
        ("https://example.org/a?c", "https://example.org/abc", True),
        ("https://a.example/* https://b.example/*", "https://b.example/it", True),
        ("*", "/srv/git/it.git", True),
        ("*", "git@example.org:it", True),
        ("*", "ext::sh -c id", False),
        ("*", "https://example.org/../it", False),
        ("", "https://example.org/it", False),
    ],
)
def test_what_patterns_permit(patterns: str, url: str, expected: bool) -> None:
    assert AllowList(patterns.split()).permits(url) is expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("https://*", False),
        ("*", False),
        ("https://*.com/*", False),
        ("https://github.com/*", True),
        ("https://github.com", True),
        ("https://other.example/*", False),
    ],
)
def test_credentials_need_a_host_in_full(patterns: str, expected: bool) -> None:
    assert AllowList(patterns.split()).trusts("https://github.com/you/it") is expected


@pytest.mark.parametrize(
    "pattern", ["github.com/you/*", "you/*", "ext::*", "ftp://*", "https://u@h"]
)
def test_a_pattern_that_can_match_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(ValueError, match="write one such as"):
        AllowList([pattern])


@pytest.mark.parametrize(("patterns", "has"), [(["/a/*", "/b/*"], "/a/*, /b/*"), ([], "nothing")])
def test_the_error_says_what_is_allowed(patterns: list[str], has: str) -> None:
    with pytest.raises(PolicyViolation) as caught:
        AllowList(patterns).check("https://example.org/x", "repository x")
    told = f"repository x is not allowed by [agents] repositories, which has: {has}; name it"
    assert caught.value.reason.startswith(told)


@pytest.mark.parametrize(
    "url", ["ext::sh -c 'touch {canary}' %G", "fd::17", "persistent-https::example.org"]
)
def test_gits_own_list_of_protocols_holds_in_any_case(
    url: str, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a deployment might set for other uses of git.
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "ext:fd")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.allow")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "always")
    with pytest.raises(AgentFailure, match=r"not allowed|unable to find remote helper"):
        resolve_base(Repository(url.format(canary=canary), "main"), tmp_path / "mirrors")
    assert not canary.exists()
