"""The error tree that every room shares. Pure.

    StokerError
    ├── BadRequest            the client's input is wrong
    │   ├── BodyTooLarge
    │   ├── ContextTooLong
    │   └── UnknownModel
    ├── Unauthenticated       no key, or not one of ours
    ├── Forbidden             a key of ours, but not for this
    ├── NotFound              an admin object that does not exist
    ├── Conflict              somebody else changed it first (ETag, three-way apply)
    ├── ConfigInvalid         every problem of a configuration at once
    ├── NoCapacity            full now; `retry_after_s` says when to come back
    ├── InsufficientMemory    can never fit as things stand; `message` holds the arithmetic
    ├── DeadlineExceeded      the request's own limit passed
    ├── Draining              this server is going away
    ├── EngineFailed          the engine spoke (its status and its words) or died
    ├── KeeperUnavailable     the keeper does not answer
    ├── ModelUnavailable      a weight file is missing, truncated, tampered or cannot be fetched
    ├── LedgerUnavailable     a durable write failed, so nothing may be acknowledged
    ├── StateDirUnusable      read-only, full or held by another Stoker
    ├── PortTaken             the endpoint cannot listen where it was told to
    └── UnsafeBinding         the endpoint would be open to strangers

`gateway.errors` alone maps a code to an HTTP status; `cli` alone prints one.
"""

from __future__ import annotations

from typing import ClassVar


class StokerError(Exception):
    """Base of all expected failures.

    Args:
        message: one sentence that states the fact, with its numbers.
        mend: what the reader can do about it, or None when nothing helps but waiting.
        param: the field of the request or configuration that is at fault.
        retry_after_s: truthful time until a retry can succeed, in seconds.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        mend: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend
        self.param = param
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message} ({self.mend})" if self.mend else self.message


class BadRequest(StokerError):
    code = "bad_request"


class BodyTooLarge(BadRequest):
    code = "body_too_large"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"


class UnknownModel(BadRequest):
    code = "model_not_found"


class Unauthenticated(StokerError):
    code = "invalid_api_key"


class Forbidden(StokerError):
    code = "forbidden"


class NotFound(StokerError):
    code = "not_found"


class Conflict(StokerError):
    code = "conflict"


class ConfigInvalid(StokerError):
    """Every problem of a configuration at once.

    Args:
        problems: one sentence each, beginning with `path:line` where known.
    """

    code = "config_invalid"

    def __init__(self, problems: tuple[str, ...], *, mend: str | None = None) -> None:
        super().__init__("\n".join(problems), mend=mend)
        self.problems = problems


class NoCapacity(StokerError):
    code = "capacity_exhausted"
    retryable = True


class InsufficientMemory(StokerError):
    code = "insufficient_memory"


class DeadlineExceeded(StokerError):
    code = "deadline_exceeded"
    retryable = True


class Draining(StokerError):
    code = "draining"
    retryable = True


class EngineFailed(StokerError):
    """The engine answered with an error, or died.

    Args:
        status: the engine's own HTTP status, None when it died without one.
        body: the engine's own words, passed on to the client as they are.
    """

    code = "engine_failed"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        body: bytes = b"",
        mend: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, mend=mend, retry_after_s=retry_after_s)
        self.status = status
        self.body = body


class KeeperUnavailable(StokerError):
    code = "keeper_unavailable"
    retryable = True


class ModelUnavailable(StokerError):
    code = "model_unavailable"


class LedgerUnavailable(StokerError):
    code = "ledger_unavailable"
    retryable = True


class StateDirUnusable(StokerError):
    code = "state_dir_unusable"


class PortTaken(StokerError):
    code = "port_taken"


class UnsafeBinding(StokerError):
    code = "unsafe_binding"
