"""What the wires have in common: how a request is read, and what an answer is made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from typing import Any, Protocol

from airflow_agent_provider.rehearsal.conversation import Conversation, Move
from airflow_agent_provider.rehearsal.script import Action, Fail

#: Model that the stand-in names where a request names none.
MODEL = "rehearsal"
#: Tokens that a request is said to have at most: near the model's limit, an agent would ask for a
#: summary of the session, which no script tells.
_MOST_TOKENS = 50_000
#: Characters of a message that are streamed at once.
_PIECE = 40


@dataclass(frozen=True)
class Whole:
    """An answer in one piece, good or bad.

    :param status: HTTP status.
    :param value: the body, sent as JSON.
    :param headers: further headers.
    :param cut: whether the connection ends in the middle of the body.
    """

    status: int
    value: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass(frozen=True)
class Event:
    """A server-sent event.

    :param name: its name, empty for none.
    :param data: text, or a value that is sent as JSON.
    """

    name: str
    data: Any

    def encode(self) -> bytes:
        """Return the event as it is sent."""
        head = f"event: {self.name}\n" if self.name else ""
        text = self.data if isinstance(self.data, str) else json.dumps(self.data)
        return f"{head}data: {text}\n\n".encode()


@dataclass(frozen=True)
class Stream:
    """An answer in pieces; the connection ends after the last one."""

    events: Sequence[Event]
    status: int = 200


Answer = Whole | Stream


@dataclass(frozen=True)
class Tokens:
    """What a request is said to have cost.

    :param read: tokens of the request, the cached ones among them.
    :param cached: those that the vendor had read before.
    :param written: tokens of the answer.
    """

    read: int
    cached: int
    written: int


class Wire(Protocol):
    """A vendor's wire: reads requests, words answers. Pure: it neither waits nor counts."""

    def authorized(self, headers: Message) -> bool:
        """Return whether the request has a key that is accepted."""

    def read(
        self, request: Mapping[str, Any], actions_of: Callable[[str], Sequence[Action]]
    ) -> Conversation:
        """Return where the conversation of a request stands.

        :param actions_of: returns a step's actions; only where its turns end matters here.
        """

    def aside(self, request: Mapping[str, Any]) -> str | None:
        """Return the text that answers what the agent's program asks beside the conversation.

        Such as a title for it. None for the conversation's own requests.
        """

    def answer(self, request: Mapping[str, Any], move: Move) -> Answer:
        """Return the answer that makes ``move``."""

    def fail(self, request: Mapping[str, Any], fail: Fail) -> Answer:
        """Return the answer that fails as the script says, but for silence and a reset."""

    def refuse(
        self, status: int, message: str, code: str = "", retry_after: float | None = None
    ) -> Whole:
        """Return an error.

        :param message: the vendor's words; empty for words of the rehearsal.
        :param code: the vendor's code for it.
        :param retry_after: seconds after which to ask again.
        """

    def refuse_key(self) -> Whole:
        """Return the error for a key that is not accepted."""

    def models(self) -> Any:
        """Return the list of models that the key may use."""


def accepts(key: str) -> bool:
    """Return whether the rehearsal accepts a key: any but an empty one and ``invalid…``."""
    return key.strip() != "" and not key.startswith("invalid")


def bearer(headers: Message) -> str:
    """Return the key of the Authorization header; empty without one."""
    scheme, _, key = (headers.get("Authorization") or "").partition(" ")
    return key if scheme == "Bearer" else ""


def pieces(text: str) -> Iterator[str]:
    """Return ``text`` in the pieces in which it is streamed."""
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]


def plain_text(content: object) -> str:
    """Return the whole text of a message's content, which is text or a list of parts."""
    return "".join(texts_of(content))


def texts_of(content: object) -> list[str]:
    """Return the texts of a message's content, one for each part that has one."""
    if isinstance(content, str):
        return [content]
    return [str(part["text"]) for part in dicts(content) if isinstance(part.get("text"), str)]


def dicts(values: object) -> list[Mapping[str, Any]]:
    """Return the mappings of a list; what else a request holds there says nothing."""
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


def count_tokens(history: object, written: object) -> Tokens:
    """Count about as a vendor does: four characters a token, all but the last entry cached.

    :param history: the entries of the request.
    :param written: the answer.
    """
    read = [len(json.dumps(entry)) // 4 for entry in (history if isinstance(history, list) else ())]
    return Tokens(
        read=min(sum(read), _MOST_TOKENS),
        cached=min(sum(read[:-1]), _MOST_TOKENS),
        written=min(len(json.dumps(written)) // 4, _MOST_TOKENS),
    )


def error_words(status: int, message: str) -> str:
    """Return the vendor's words, or else the rehearsal's own."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return message or f"The rehearsal's script answers {status} {phrase}."


def error_headers(retry_after: float | None) -> dict[str, str]:
    """Return the headers of an error."""
    return {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
