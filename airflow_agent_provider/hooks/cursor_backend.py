"""Cursor's backend, as its program on the worker uses it: the token for it, and how it fails.

The program speaks Connect (https://connectrpc.com/docs/protocol/), whose streams tell a failure in
their last message, under HTTP status 200. Cursor's SDK tries again by itself then, and in the end
says no more than that it did; so its failures are read on the way, at the door.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    AuthenticationFailed,
    ContextExhausted,
    PolicyViolation,
    QuotaExhausted,
    RateLimited,
    Unavailable,
)

#: Where the API key is exchanged for a token that the rest of the backend takes.
EXCHANGE = "/auth/exchange_user_api_key"
#: The stream by which the model lets the program act.
RUN = "/agent.v1.AgentService/RunSSE"
#: What else the program asks. Left out is what it tells the vendor of its use.
PATHS = (
    EXCHANGE,
    "/agent.v1.AgentService",
    "/aiserver.v1.BidiService",
    "/aiserver.v1.DashboardService/GetUserPrivacyMode",
    "/aiserver.v1.DashboardService/GetTeamAdminSettingsOrEmptyIfNotInTeam",
    "/aiserver.v1.DashboardService/GetTeamReposOrEmptyIfNotInTeam",
    "/aiserver.v1.ServerConfigService/GetServerConfig",
)
#: Seconds for the exchange.
_EXCHANGE_SECONDS = 30.0
#: Seconds that a token is used which does not say when it ends.
_UNKNOWN_LIFE = 900.0
#: A Connect message's head: a byte of flags, four of length.
_HEAD = 5
_COMPRESSED, _LAST = 1, 2
#: Bytes of a stream's last message that are read.
_MOST_LAST = 1024 * 1024
#: zlib's word for gzip.
_GZIP = 16 + zlib.MAX_WBITS


class AccessToken:
    """The token for Cursor's backend, made from the API key outside of the box, and renewed.

    :param url: base URL of the backend.
    :param key: the API key.
    :param conn_id: id of the connection that holds the key, for the user.
    """

    def __init__(self, url: str, key: str, conn_id: str) -> None:
        self._url = url
        self._key = key
        self._conn_id = conn_id
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0

    def headers(self) -> dict[str, str]:
        """Return the header that shows a token which still holds.

        :raises AgentFailure: if the backend gives none.
        """
        with self._lock:
            if time.time() >= self._renew_at:
                self._token = self._exchange()
                now = time.time()
                # At half its life, as Cursor's own program does.
                self._renew_at = now + _life(self._token, now) / 2
            return {"Authorization": f"Bearer {self._token}"}

    def _exchange(self) -> str:
        import httpx

        try:
            answer = httpx.post(
                f"{self._url}{EXCHANGE}",
                headers={"Authorization": f"Bearer {self._key}"},
                json={},
                timeout=_EXCHANGE_SECONDS,
            )
        except httpx.HTTPError as error:
            raise Unavailable(
                f"Cursor's backend at {self._url} gives no answer; if that lasts, check the host "
                f"of the connection {self._conn_id!r} and the network",
                raw=f"{type(error).__name__}: {error}".rstrip(": "),
            ) from error
        # A vendor may repeat the key in its error.
        words = answer.text.replace(self._key, "***")[:2000]
        if not answer.is_success:
            raise self._refused(answer.status_code, words, answer.headers.get("retry-after"))
        try:
            token = answer.json()["accessToken"]
        except (ValueError, KeyError, TypeError):
            token = None
        if not isinstance(token, str) or not token:
            raise AgentFailed(f"{self._url} is no backend of Cursor's: it gave no token", raw=words)
        return token

    def _refused(self, status: int, words: str, wait: str | None) -> AgentFailure:
        if status in (401, 403):
            return refused_key(self._url, self._conn_id, words)
        return failure_of_status(status, words, seconds(wait))


def refused_key(url: str, conn_id: str, raw: str | None) -> AuthenticationFailed:
    """Return the failure of a key that the backend does not take."""
    return AuthenticationFailed(
        f"{url} refused the API key of the connection {conn_id!r}; correct its password in Airflow "
        "under Admin > Connections",
        raw=raw,
    )


def _life(token: str, now: float) -> float:
    """Return the seconds for which a token holds, by its own word if it is a JSON web token."""
    try:
        middle = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        return max(1.0, float(claims["exp"]) - now)
    except (IndexError, ValueError, KeyError, TypeError):
        return _UNKNOWN_LIFE


@dataclass(frozen=True)
class StreamFailure:
    """How a stream of the backend's failed.

    :param code: Connect's code, such as ``resource_exhausted``; empty where it broke off.
    :param words: what the vendor said.
    :param error: number of ``aiserver.v1.ErrorDetails.Error``, which says more; 0 if none.
    :param retry_after: seconds that it asks to wait, if it does.
    """

    code: str
    words: str
    error: int = 0
    retry_after: float | None = None


_BROKEN = StreamFailure("", "the stream broke off")


class StreamEnds:
    """Reads how the backend's streams end, on their way through the door.

    :param tell: called with each failure, in the door's thread.
    """

    def __init__(self, tell: Callable[[StreamFailure], None]) -> None:
        self._tell = tell

    def tap(self, path: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield a stream's pieces as they are."""
        if path != RUN:
            yield from pieces
            return
        reader = _LastMessage()
        try:
            for piece in pieces:
                if reader.feed(piece):
                    # Told before the program itself hears of it.
                    self._hear(read_end(reader.last))
                yield piece
        except Exception:
            self._hear(_BROKEN)
            raise
        if not reader.ended:
            self._hear(_BROKEN)

    def _hear(self, failure: StreamFailure | None) -> None:
        if failure is not None:
            self._tell(failure)


class _LastMessage:
    """Finds the last message of a Connect stream, whose other ones it skips."""

    def __init__(self) -> None:
        self.last = b""
        self.ended = False
        self._head = bytearray()
        self._left = 0
        self._flags = 0
        self._content = bytearray()

    def feed(self, piece: bytes) -> bool:
        """Read on; return whether the last message ends in ``piece``."""
        if self.ended:
            return False
        place = 0
        while place < len(piece) and not self.ended:
            if self._left == 0:
                place = self._read_head(piece, place)
            else:
                place = self._read_content(piece, place)
        return self.ended

    def _read_head(self, piece: bytes, place: int) -> int:
        wanted = _HEAD - len(self._head)
        self._head += piece[place : place + wanted]
        if len(self._head) == _HEAD:
            self._flags, self._left = self._head[0], int.from_bytes(self._head[1:], "big")
            self._head.clear()
            self._content.clear()
            self._finish()
        return place + wanted

    def _read_content(self, piece: bytes, place: int) -> int:
        part = piece[place : place + self._left]
        if self._flags & _LAST and len(self._content) < _MOST_LAST:
            self._content += part
        self._left -= len(part)
        self._finish()
        return place + len(part)

    def _finish(self) -> None:
        if self._left == 0 and self._flags & _LAST:
            self.last = bytes(self._content)
            if self._flags & _COMPRESSED:
                self.last = zlib.decompressobj(_GZIP).decompress(self.last, _MOST_LAST)
            self.ended = True


def read_end(content: bytes) -> StreamFailure | None:
    """Return the failure that a Connect stream's last message tells, None if it tells none."""
    try:
        end = json.loads(content)
        error = end.get("error")
    except (ValueError, AttributeError):
        return StreamFailure("", "the stream's end cannot be read")
    if not isinstance(error, dict):
        return None
    waits = _mapping(end.get("metadata")).get("retry-after")
    wait = waits[0] if isinstance(waits, list) and waits else None
    return StreamFailure(
        code=str(error.get("code") or "unknown"),
        words=str(error.get("message") or ""),
        error=_error_number(error.get("details")),
        retry_after=seconds(wait),
    )


def _error_number(details: object) -> int:
    for detail in details if isinstance(details, list) else ():
        if _mapping(detail).get("type") == "aiserver.v1.ErrorDetails":
            value = str(detail.get("value") or "")
            try:
                return _first_number(base64.b64decode(value + "=" * (-len(value) % 4)))
            except ValueError:
                return 0
    return 0


def _first_number(message: bytes) -> int:
    """Return the number in a protobuf message's first field, if that is field 1; else 0."""
    number = 0
    if message[:1] == b"\x08":
        for index, byte in enumerate(message[1:6]):
            number |= (byte & 127) << 7 * index
            if byte < 128:
                return number
    return 0


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def seconds(text: object) -> float | None:
    """Return the seconds that a Retry-After header names, None if it names none."""
    try:
        return max(0.0, float(text))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None  # Not there, or a date: the step's own rule does then.


def failure_of(stream: StreamFailure) -> AgentFailure:
    """Return the failure that a stream's end is."""
    raw = f"[{stream.code}] {stream.words}".strip() if stream.code else stream.words
    if stream.error in _BY_ERROR:
        return _BY_ERROR[stream.error](raw, stream.retry_after)
    return _BY_CODE.get(stream.code, _failed)(raw, stream.retry_after)


def failure_of_status(status: int | None, words: str, wait: float | None = None) -> AgentFailure:
    """Return the failure that an HTTP status other than success is; None stands for no answer."""
    raw = words if status is None else f"HTTP {status}: {words}"
    if status in (401, 403):
        return _unauthorized(raw, wait)
    if status == 402:
        return _quota(raw, wait)
    if status == 429:
        return _rate_limited(raw, wait)
    if status is None or status in (408, 409) or status >= 500:
        return _unavailable(raw, wait)
    return _failed(raw, wait)


def failure_of_words(words: str) -> AgentFailure:
    """Return the failure that Cursor's SDK words as ``[code] …``, or in words alone."""
    code = words[1:].partition("]")[0] if words.startswith("[") else "unknown"
    return _BY_CODE.get(code, _failed)(words, None)


def _unauthorized(raw: str, wait: float | None) -> AgentFailure:
    return AuthenticationFailed("Cursor's backend refused the key", raw=raw)


def _quota(raw: str, wait: float | None) -> AgentFailure:
    return QuotaExhausted("the quota of the account at Cursor is used up", raw=raw)


def _rate_limited(raw: str, wait: float | None) -> AgentFailure:
    return RateLimited("Cursor's rate limit is reached", raw=raw, retry_after=wait)


def _context(raw: str, wait: float | None) -> AgentFailure:
    return ContextExhausted("the session no longer fits the model's context", raw=raw)


def _policy(raw: str, wait: float | None) -> AgentFailure:
    return PolicyViolation("Cursor refused the task by its policy", raw=raw)


def _unavailable(raw: str, wait: float | None) -> AgentFailure:
    return Unavailable("Cursor's backend cannot serve the request now", raw=raw)


def _failed(raw: str, wait: float | None) -> AgentFailure:
    return AgentFailed("Cursor failed", raw=raw)


_Make = Callable[[str, float | None], AgentFailure]

#: By Connect's code; empty where the stream broke off.
_BY_CODE: dict[str, _Make] = {
    "": _unavailable,
    "unauthenticated": _unauthorized,
    "permission_denied": _unauthorized,
    "resource_exhausted": _rate_limited,
    "unavailable": _unavailable,
    "internal": _unavailable,
    "deadline_exceeded": _unavailable,
    "aborted": _unavailable,
    "data_loss": _unavailable,
}


def _numbers(make: _Make, *numbers: int) -> dict[int, _Make]:
    return dict.fromkeys(numbers, make)


#: By the numbers of ``aiserver.v1.ErrorDetails.Error`` (cursor-sdk 1.1.0, ``@cursor/sdk``).
_BY_ERROR: dict[int, _Make] = {
    # BAD_API_KEY, NOT_LOGGED_IN, INVALID_AUTH_ID, NOT_HIGH_ENOUGH_PERMISSIONS,
    # AUTH_TOKEN_NOT_FOUND, AUTH_TOKEN_EXPIRED, AGENT_REQUIRES_LOGIN, UNAUTHORIZED,
    # BAD_USER_API_KEY, ACCOUNT_CLOSED
    **_numbers(_unauthorized, 1, 2, 3, 4, 11, 12, 18, 38, 42, 65),
    # FREE_USER_USAGE_LIMIT, PRO_USER_USAGE_LIMIT, PRO_USER_ONLY, USAGE_PRICING_REQUIRED (twice)
    **_numbers(_quota, 9, 10, 23, 44, 45),
    # FREE_USER_…, PRO_USER_…, OPENAI_…, GENERIC_…, GPT_4_VISION_…, API_KEY_RATE_LIMIT,
    # RESOURCE_EXHAUSTED, RATE_LIMITED (twice)
    **_numbers(_rate_limited, 7, 8, 14, 22, 28, 34, 41, 50, 51),
    # MAX_TOKENS, CONVERSATION_TOO_LONG
    **_numbers(_context, 20, 43),
    # SUSPICIOUS_USAGE_BLOCKED, UNSUPPORTED_REGION, TENANT_RESTRICTION_VIOLATION
    **_numbers(_policy, 54, 64, 66),
    # TIMEOUT, NETWORK_ERROR, PROVIDER_ERROR, INTERNAL, SLOW_POOL
    **_numbers(_unavailable, 25, 56, 57, 59, 63),
    # BAD_MODEL_NAME, BAD_REQUEST, MODEL_BLOCKED, MODEL_NO_LONGER_SUPPORTED: whatever their code is.
    **_numbers(_failed, 5, 36, 58, 61),
}
