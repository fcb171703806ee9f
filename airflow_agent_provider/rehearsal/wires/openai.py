"""What both of OpenAI's wires have in common: keys, errors and models."""

from __future__ import annotations

from email.message import Message
from typing import Any

from airflow_agent_provider.rehearsal.wires.wire import (
    MODEL,
    Whole,
    accepts,
    bearer,
    error_headers,
    error_words,
)


class OpenAI:
    """OpenAI's part of a wire. https://platform.openai.com/docs/api-reference"""

    def authorized(self, headers: Message) -> bool:
        """Return whether the request has a key that is accepted."""
        return accepts(bearer(headers))

    def refuse(
        self, status: int, message: str, code: str = "", retry_after: float | None = None
    ) -> Whole:
        """Return an error."""
        return Whole(status, error_body(status, message, code), error_headers(retry_after))

    def refuse_key(self) -> Whole:
        """Return the error for a key that is not accepted."""
        return self.refuse(401, "Incorrect API key provided.", "invalid_api_key")

    def models(self) -> Any:
        """Return the list of models that the key may use."""
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "rehearsal"}
        return {"object": "list", "data": [model]}


def error_body(status: int, message: str, code: str) -> dict[str, Any]:
    """Return the body of an error."""
    words = error_words(status, message)
    return {
        "error": {
            "message": words,
            "type": code or "rehearsal",
            "param": None,
            "code": code or None,
        }
    }
