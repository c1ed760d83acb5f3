"""What was measured so far, and what it predicts: start times, service times, waits. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

START_WINDOW = 5  # starts remembered; three at another speed already outvote the other two
PRIOR_START_BASE_S = 1.0  # process, imports and warm-up of an engine of unknown speed
PRIOR_LOAD_BYTES_PER_S = 500 * 2**20  # a slow NVMe disk; page cache is faster, a network disk slower
PRIOR_SERVICE_S = 1.0  # a short answer on a small model, until one has been measured
SERVICE_WEIGHT = 0.2  # of the newest request in the moving averages: the last ~10 requests count
_MIN_START_LEFT_RATIO = 0.05  # a start that is about due is never predicted at zero
_MAX_SIZE_FACTOR = 4.0  # how far a request's own size may bend the mean; clients overstate their output limit


@dataclass(frozen=True, slots=True)
class StartTimes:
    """Measured cold starts of one deployment.

    Attributes:
        prior_s: the stated guess until one start has been measured.
        measured_s: the last `START_WINDOW` starts, oldest first.
    """

    prior_s: float
    measured_s: tuple[float, ...] = ()

    @property
    def learned_s(self) -> float:
        """Seconds that the next start is predicted to take."""
        return median(self.measured_s) if self.measured_s else self.prior_s

    def observe(self, took_s: float) -> StartTimes:
        return StartTimes(self.prior_s, (*self.measured_s, took_s)[-START_WINDOW:])


def prior_start_s(weights_bytes: int) -> float:
    """Guess a start that was never measured: a fixed part and the time to read the weights."""
    return PRIOR_START_BASE_S + weights_bytes / PRIOR_LOAD_BYTES_PER_S


def start_left_s(learned_s: float, elapsed_s: float, start_timeout_s: float) -> float:
    """Predict the rest of a start under way.

    learned − elapsed while it is on time. When it overruns it is expected to take as long again as it is already late,
    so the answer grows with the overrun, and never passes the start's own time-out.
    """
    left_s = max(learned_s - elapsed_s, elapsed_s - learned_s, learned_s * _MIN_START_LEFT_RATIO)
    return max(0.0, min(left_s, start_timeout_s - elapsed_s))


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """Moving averages of how long a request holds its slot, and of its tokens."""

    mean_s: float = PRIOR_SERVICE_S
    mean_tokens: float | None = None
    num_measured: int = 0

    def observe(self, held_s: float, tokens: int | None) -> ServiceTimes:
        """Take one finished request into account; `tokens` is input + output, None when unknown."""
        mean_s = held_s if self.num_measured == 0 else self.mean_s + SERVICE_WEIGHT * (held_s - self.mean_s)
        mean_tokens = self.mean_tokens
        if tokens is not None:
            mean_tokens = (
                float(tokens) if mean_tokens is None else mean_tokens + SERVICE_WEIGHT * (tokens - mean_tokens)
            )
        return ServiceTimes(mean_s, mean_tokens, self.num_measured + 1)

    def predict_s(self, est_tokens: int) -> float:
        """Predict how long a request of `est_tokens` (input + output limit) holds a slot."""
        if not est_tokens or not self.mean_tokens:
            return self.mean_s
        return self.mean_s * min(_MAX_SIZE_FACTOR, max(1 / _MAX_SIZE_FACTOR, est_tokens / self.mean_tokens))


def predict_wait_s(slots_free_in_s: Iterable[float], ahead_s: Iterable[float]) -> float | None:
    """Predict when the request at the end of a first-come queue gets a slot.

    Args:
        slots_free_in_s: for each slot that exists or will, seconds until it is free.
        ahead_s: predicted service seconds of each request ahead, first come first.

    Returns:
        Seconds from now; None when there is no slot to wait for.
    """
    slots = list(slots_free_in_s)
    if not slots:
        return None
    heapq.heapify(slots)
    for service_s in ahead_s:
        heapq.heapreplace(slots, slots[0] + service_s)
    return slots[0]
