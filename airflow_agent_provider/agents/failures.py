"""The failure classes: every failure of every agent is exactly one of these.

The class decides what happens next (a retry, how long to wait, resume or start fresh), so a hook
never lets a vendor's own exception out: it raises one of these and keeps the vendor's words.
"""

from __future__ import annotations

from typing import ClassVar

#: Characters of a failure in one line.
_LINE_LENGTH = 400


class AgentFailure(Exception):
    """An attempt failed.

    :param reason: one line for the user: what is wrong, where, and the next step.
    :param raw: the vendor's own words, unchanged, for the log and the outcome.
    """

    #: Whether another attempt can help at all.
    retryable: ClassVar[bool] = True
    #: Whether the next attempt continues the agent's session.
    resumes_session: ClassVar[bool] = True

    def __init__(self, reason: str, *, raw: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.raw = raw

    @property
    def failure_class(self) -> str:
        """The class's name, as it stands in outcomes, XCom and the mirror.

        A narrower exception, such as :class:`Superseded`, counts as the class that it refines.
        """
        names = (cls.__name__ for cls in type(self).__mro__)
        return next((name for name in names if name in FAILURE_CLASSES), type(self).__name__)

    @property
    def line(self) -> str:
        """Class, reason and the beginning of the vendor's words, in one line for people."""
        text = " ".join(str(self).split())
        return text if len(text) <= _LINE_LENGTH else f"{text[: _LINE_LENGTH - 1].rstrip()}…"

    def __str__(self) -> str:
        vendor = (
            f" (the agent said: {self.raw})" if self.raw and self.raw not in self.reason else ""
        )
        return f"{self.failure_class}: {self.reason}{vendor}"


class AuthenticationFailed(AgentFailure):
    """The key is missing, wrong or lacks a right."""

    retryable = False


class QuotaExhausted(AgentFailure):
    """The account's quota or credit is used up."""

    retryable = False


class BudgetExceeded(AgentFailure):
    """The run's budget is spent."""

    retryable = False


class PolicyViolation(AgentFailure):
    """The agent did, or left behind, what the step forbids."""

    retryable = False


class InvalidDefinition(AgentFailure):
    """The workflow asks for what cannot be: no retry mends it."""

    retryable = False


class RateLimited(AgentFailure):
    """The vendor asks to wait.

    :param retry_after: seconds to wait, as the vendor said; None if it did not say.
    """

    def __init__(
        self, reason: str, *, raw: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(reason, raw=raw)
        self.retry_after = retry_after


class Unavailable(AgentFailure):
    """The vendor cannot be reached or cannot serve: refused, 5xx, overloaded, dropped stream."""


class Stalled(AgentFailure):
    """The agent gave no sign of life for the step's ``stall`` time."""


class TimedOut(AgentFailure):
    """The attempt's ``timeout`` is over."""


class Interrupted(AgentFailure):
    """The worker or its supervisor died, or a user or a newer attempt ended this one."""


class Superseded(Interrupted):
    """A newer attempt has the step: this one must end, and none of its writes count."""


class ContextExhausted(AgentFailure):
    """The session no longer fits the model's context; the work is kept, the session is not."""

    resumes_session = False


class OutputInvalid(AgentFailure):
    """The declared output is missing, empty, outside the workspace or not of its schema."""


class VerificationFailed(AgentFailure):
    """A check of the step failed on the work."""


class AgentFailed(AgentFailure):
    """Anything the hook could not classify; the vendor's raw error is kept."""


#: Every failure class by its name.
FAILURE_CLASSES: dict[str, type[AgentFailure]] = {
    cls.__name__: cls
    for cls in (
        AuthenticationFailed,
        QuotaExhausted,
        BudgetExceeded,
        PolicyViolation,
        InvalidDefinition,
        RateLimited,
        Unavailable,
        Stalled,
        TimedOut,
        Interrupted,
        ContextExhausted,
        OutputInvalid,
        VerificationFailed,
        AgentFailed,
    )
}


def failure_to_dict(failure: AgentFailure) -> dict[str, object]:
    """Return ``failure`` as JSON values, for trigger events and outcomes."""
    return {
        "failure_class": failure.failure_class,
        "reason": failure.reason,
        "raw": failure.raw,
        "retry_after": getattr(failure, "retry_after", None),
    }


def failure_from_dict(values: dict[str, object]) -> AgentFailure:
    """Return the failure that :func:`failure_to_dict` wrote.

    An unknown class, as of a newer release, becomes :class:`AgentFailed`.
    """
    cls = FAILURE_CLASSES.get(str(values.get("failure_class")), AgentFailed)
    reason = str(values.get("reason") or "no reason was given")
    raw = values.get("raw")
    text = None if raw is None else str(raw)
    if cls is RateLimited:
        wait = values.get("retry_after")
        return RateLimited(
            reason, raw=text, retry_after=float(wait) if isinstance(wait, int | float) else None
        )
    return cls(reason, raw=text)
