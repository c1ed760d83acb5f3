"""When a deployment whose replicas fail may try again: backoff, then a circuit. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STABLE_AFTER_S = 30.0  # a replica that has been ready this long, or that served one request well, was no failure


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often in a row a start may fail, and for how many seconds the circuit then stays open."""

    max_failures: int
    cooldown_s: float


@dataclass(frozen=True, slots=True)
class Restarts:
    """What went wrong lately.

    Attributes:
        num_failures: consecutive, of starts and of replicas that never served.
        not_before_s: monotonic time of the next allowed start, None when it is allowed now.
        is_open: the circuit: callers are refused until `not_before_s`, then one start is tried.
        last_words: of the engine that failed last; kept until a replica serves.
    """

    num_failures: int = 0
    not_before_s: float | None = None
    is_open: bool = False
    last_words: str | None = None

    def blocked_for_s(self, now_s: float) -> float:
        """Return the seconds until a start is allowed, 0.0 when it is now."""
        return 0.0 if self.not_before_s is None else max(0.0, self.not_before_s - now_s)

    def is_refusing(self, now_s: float) -> bool:
        """Return whether the circuit is open and its cool-down has not passed."""
        return self.is_open and self.blocked_for_s(now_s) > 0


def after_failure(restarts: Restarts, policy: RestartPolicy, words: str, now_s: float) -> Restarts:
    """Count one failure: wait 0.5, 1, 2, … s (at most 30), or open the circuit for its cool-down.

    After the cool-down one start is tried; when it fails as well the circuit opens again at once.
    """
    num_failures = restarts.num_failures + 1
    is_open = num_failures >= policy.max_failures
    backoff_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(num_failures - 1, 10))
    return Restarts(num_failures, now_s + (policy.cooldown_s if is_open else backoff_s), is_open, words)


def after_success(restarts: Restarts) -> Restarts:
    """Forget the failures: a replica has served."""
    return restarts if restarts == Restarts() else Restarts()


def after_ready(restarts: Restarts) -> Restarts:
    """A replica is up: let requests through, but keep the count until it has served, lest it loops for ever."""
    return replace(restarts, not_before_s=None, is_open=False) if restarts.num_failures else restarts
