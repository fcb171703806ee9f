"""Which repositories a run may name, and where a repository is.

What a workflow names was reviewed with it. What a run's ``conf`` names comes from anybody who may
trigger the workflow, and is fetched by the worker, with its network, its files and perhaps the
workflow's credentials; so it has to match an operator's patterns. The same holds for submodules,
whose URLs come from the repository itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import unquote

from airflow_agent_provider.agents.failures import PolicyViolation

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)(/.*)?", re.DOTALL)
#: git's short form of an SSH URL. With two colons it would be a program of git's own (``ext::…``).
_SCP_LIKE = re.compile(r"([^/:\[\]]*|[^/:\[\]]*\[[^\]/]*\]):(?!:)(.*)", re.DOTALL)
_DEFAULT_PORTS = {"http": ":80", "https": ":443", "ssh": ":22", "git": ":9418"}
#: Git's transports that are let through at all; see ``GIT_ALLOW_PROTOCOL`` in :mod:`.git`.
_SCHEMES = (*_DEFAULT_PORTS, "file")
_WILD = re.compile(r"[*?]")
_ANYTHING = "*"


@dataclass(frozen=True)
class Place:
    """Where a repository is.

    :param scheme: ``https``, ``http``, ``ssh``, ``git``, or ``file`` for a path of this worker.
    :param host: host and, unless it is the scheme's own, port; empty for a path.
    :param path: what follows, with its leading slash.
    """

    scheme: str
    host: str
    path: str

    def same_host(self, other: Place) -> bool:
        """Return whether both are on one server, which credentials for one may also reach."""
        return bool(self.host) and (self.scheme, self.host) == (other.scheme, other.host)


def place_of(url: str) -> Place | None:
    """Return where ``url`` leads; None where that cannot be told for sure.

    ``user@host:path`` counts as ``ssh://user@host/path``. A URL with a user for HTTP, a ``..``,
    a query or a helper of git's (``ext::…``) leads nowhere that patterns could speak of.

    :param url: URL, or absolute path.
    """
    if not url.isprintable() or "\\" in url:
        return None
    place = _parsed(url)
    if place is None or {".", ".."} & set(unquote(place.path).split("/")):
        return None
    if place.scheme != "file" and ("?" in place.path or "#" in place.path or "%" in place.host):
        return None
    return place


class AllowList:
    """The repositories that runs may name, as the setting ``[agents] repositories`` has them.

    A pattern is a URL or an absolute path in which ``*`` is any text and ``?`` one character. Host
    and path are compared each for itself, so that no ``*`` of one reaches into the other; a
    ``.git`` at the end of a URL may be missing in its pattern. ``*`` alone allows all.

    :param patterns: the patterns.
    :raises ValueError: if one of them can match nothing; the text says why.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._places = [_pattern(text) for text in self.patterns if text != _ANYTHING]
        self._anything = _ANYTHING in self.patterns

    def permits(self, url: str) -> bool:
        """Return whether a run may name ``url``."""
        place = place_of(url)
        if place is None:
            return False
        return self._anything or any(_matches(place, pattern) for pattern in self._places)

    def trusts(self, url: str) -> bool:
        """Return whether a pattern allows ``url`` and names its host in full.

        Credentials go there alone: ``https://*`` says nothing about who answers.
        """
        place = place_of(url)
        return place is not None and any(
            _matches(place, pattern) and not _WILD.search(pattern.host) for pattern in self._places
        )

    def check(self, url: str, what: str) -> None:
        """Make sure that ``url`` may be fetched.

        :param url: the URL or path.
        :param what: what names it, for the error: ``repository …, which this run names,``.
        :raises PolicyViolation: if no pattern allows it.
        """
        if self.permits(url):
            return
        raise PolicyViolation(
            f"{what} is not allowed by [agents] repositories, which has: "
            f"{', '.join(self.patterns) or 'nothing'}; name it in the workflow's own file, or have "
            f"whoever runs Airflow add a pattern for it"
        )


def _parsed(url: str) -> Place | None:
    if found := _URL.fullmatch(url):
        scheme, authority, path = found[1].lower(), found[2], found[3] or "/"
        user, _, host = authority.rpartition("@")
        if scheme not in _SCHEMES or (user and scheme != "ssh"):
            return None
        if (scheme == "file") == bool(host):
            return None
        return Place(scheme, host.lower().removesuffix(_DEFAULT_PORTS.get(scheme, ":")), path)
    if url.startswith("/"):
        return Place("file", "", url)
    if found := _SCP_LIKE.fullmatch(url):
        host = found[1].rpartition("@")[2].lower()
        return Place("ssh", host, f"/{found[2].removeprefix('/')}") if host else None
    return None


def _pattern(text: str) -> Place:
    place = _parsed(text)
    if place is None:
        raise ValueError(
            f"{text!r} is no pattern of a repository; write one such as https://github.com/you/*, "
            "ssh://git@github.com/you/* or /srv/git/*"
        )
    # "https://*" is for all paths too.
    return Place(place.scheme, place.host, "/*") if place.path == "/" else place


def _matches(place: Place, pattern: Place) -> bool:
    paths = {place.path, place.path.rstrip("/"), place.path.rstrip("/").removesuffix(".git")}
    return (
        place.scheme == pattern.scheme
        and _matches_text(place.host, pattern.host)
        and any(_matches_text(path, pattern.path) for path in paths)
    )


def _matches_text(text: str, pattern: str) -> bool:
    # To fnmatch, brackets are special; here they are those of an IPv6 address.
    return fnmatchcase(text, pattern.replace("[", "[[]"))
