"""Whether a failed attempt is tried on another replica. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MAX_RETRIES = 2
_ABSENT_STATUSES = frozenset({502, 503, 504})  # the replica says that it does not serve now


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """Attributes: is_retry: try again elsewhere; reason: why, in one clause."""

    is_retry: bool
    reason: str


def decide_retry(*, status: int | None, has_body: bool, num_attempts: int, has_sent_bytes: bool) -> RetryDecision:
    """Decide after one failed attempt, by the first rule that holds.

    Args:
        status: the engine's HTTP status, None when the connection failed.
        has_body: the engine said why in its own words.
        num_attempts: attempts made so far, the failed one included; at least 1.
        has_sent_bytes: the client has already seen a part of the answer.
    """
    if has_sent_bytes:
        return RetryDecision(False, "the client has seen a part of the answer")
    if num_attempts > MAX_RETRIES:
        return RetryDecision(False, f"{num_attempts} attempts failed")
    if status is None:
        return RetryDecision(True, "the connection failed before the first byte")
    if status in _ABSENT_STATUSES:
        return RetryDecision(True, f"the replica answered {status}")
    if status >= 500 and not has_body:
        return RetryDecision(True, f"the replica answered {status} without a word")
    return RetryDecision(False, "the engine gave its own answer")
