"""Usage and capacity reports: what they contain, and how rows add up to them. Pure.

A store may add up the requests in its own language; `request_rows` and `busy_us_by_deployment` are then the reference
that its answers are compared with.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from stoker.ledger.records import ReplicaInterval, RequestIntent, Settlement

Dimension = Literal["deployment", "key", "tenant", "tier", "day"]
DIMENSIONS: tuple[Dimension, ...] = ("deployment", "key", "tenant", "tier", "day")
SERVING_STATUSES = frozenset({"ready", "draining"})
"""Replica statuses in which requests run."""

_US_PER_S = 1_000_000
US_PER_DAY = 86_400 * _US_PER_S
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Recorded = tuple[RequestIntent, Settlement | None]
Busy = Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which requests to report, by arrival: `since_us` ≤ arrival < `until_us`.

    Attributes:
        group_by: the dimensions of the rows, in the order of their `group`; empty: one row for everything.
    """

    since_us: int
    until_us: int
    group_by: tuple[Dimension, ...] = ("deployment",)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 99th percentile, nearest rank; None where nothing was measured."""

    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What the requests of one group asked, took and cost.

    Attributes:
        group: the values of the query's dimensions; a day is written `2026-11-21`, UTC.
        num_requests: all that arrived, open ones included.
        num_open: not settled yet.
        outcomes: settled requests by outcome.
        num_exact_usage: settled requests whose tokens the engine itself counted.
        price_nanousd: of the priced ones.
        num_unpriced: settled requests without a price.
        first_arrived_at_us, last_settled_at_us: the span that `output_tokens_per_s` divides by.
        queue_s: over all settled requests that reached the queue.
        cold_start_s: over the `num_cold_starts` requests that waited for a replica's start at all.
        itl_mean_s: over the requests' own means.
    """

    group: tuple[str, ...]
    num_requests: int
    num_open: int
    outcomes: Mapping[str, int]
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    num_exact_usage: int
    price_nanousd: int
    num_unpriced: int
    num_cold_starts: int
    first_arrived_at_us: int
    last_settled_at_us: int | None
    queue_s: Spread
    cold_start_s: Spread
    gateway_ttft_s: Spread
    itl_mean_s: Spread

    @property
    def output_tokens_per_s(self) -> float | None:
        """Output tokens over the time from the first arrival to the last settlement; None without such a time."""
        if self.last_settled_at_us is None or self.last_settled_at_us <= self.first_arrived_at_us:
            return None
        return self.output_tokens * _US_PER_S / (self.last_settled_at_us - self.first_arrived_at_us)


@dataclass(frozen=True, slots=True)
class CapacityRow:
    """What one deployment's replicas held on one tier inside the query's window.

    Attributes:
        reserved_s: replica-seconds in any status that holds resources.
        ready_s: replica-seconds in which requests could run.
        busy_s: replica-seconds with at least one request running, of requests that arrived in the window.
        memory_byte_s, core_s, gpu_s: reservation × seconds.
        output_tokens: of requests that arrived in the window.
    """

    deployment: str
    tier: str
    num_replicas: int
    reserved_s: float
    ready_s: float
    busy_s: float
    memory_byte_s: float
    core_s: float
    gpu_s: float
    output_tokens: int

    @property
    def utilisation_ratio(self) -> float | None:
        """Busy over ready time, at most 1; None when nothing was ready."""
        return min(1.0, self.busy_s / self.ready_s) if self.ready_s > 0 else None

    @property
    def effective_output_tokens_per_s(self) -> float | None:
        """Output tokens per reserved replica-second: what was kept warm for nothing counts against it."""
        return self.output_tokens / self.reserved_s if self.reserved_s > 0 else None


@dataclass(frozen=True, slots=True)
class UsageReport:
    """The answer to a query; rows sorted by group, capacity by deployment and tier."""

    query: UsageQuery
    rows: tuple[UsageRow, ...]
    capacity: tuple[CapacityRow, ...]


def spread(values: Sequence[float]) -> Spread:
    """Return nearest-rank percentiles: the least value that at least p % of the values do not exceed.

    Source: Hyndman and Fan 1996, definition 1.
    """
    if not values:
        return Spread(None, None)
    ordered = sorted(values)
    return Spread(*(ordered[-(-p * len(ordered) // 100) - 1] for p in (50, 99)))


def day_text(day: int) -> str:
    """Write a number of days since the epoch as an ISO date."""
    return (_EPOCH + timedelta(days=day)).date().isoformat()


def group_of(intent: RequestIntent, group_by: Sequence[Dimension]) -> tuple[str, ...]:
    """Return the group that a request belongs to."""
    values = {
        "deployment": intent.deployment,
        "key": intent.key_id,
        "tenant": intent.tenant,
        "tier": intent.tier,
        "day": day_text(intent.arrived_at_us // US_PER_DAY),
    }
    return tuple(values[dimension] for dimension in group_by)


def _is_inside(query: UsageQuery, intent: RequestIntent) -> bool:
    return query.since_us <= intent.arrived_at_us < query.until_us


def request_rows(query: UsageQuery, recorded: Iterable[Recorded]) -> tuple[UsageRow, ...]:
    """Add up the requests that arrived in the query's window, by group."""
    groups: dict[tuple[str, ...], list[Recorded]] = defaultdict(list)
    for intent, settlement in recorded:
        if _is_inside(query, intent):
            groups[group_of(intent, query.group_by)].append((intent, settlement))
    return tuple(_usage_row(group, groups[group]) for group in sorted(groups))


def _usage_row(group: tuple[str, ...], members: Sequence[Recorded]) -> UsageRow:
    settled = [settlement for _, settlement in members if settlement is not None]
    cold_starts = [s.cold_start_s for s in settled if s.cold_start_s is not None and s.cold_start_s > 0]
    return UsageRow(
        group=group,
        num_requests=len(members),
        num_open=len(members) - len(settled),
        outcomes=dict(sorted(Counter(s.outcome for s in settled).items())),
        input_tokens=sum(s.input_tokens or 0 for s in settled),
        output_tokens=sum(s.output_tokens or 0 for s in settled),
        cached_input_tokens=sum(s.cached_input_tokens or 0 for s in settled),
        num_exact_usage=sum(s.has_exact_usage for s in settled),
        price_nanousd=sum(s.price_nanousd or 0 for s in settled),
        num_unpriced=sum(s.price_nanousd is None for s in settled),
        num_cold_starts=len(cold_starts),
        first_arrived_at_us=min(intent.arrived_at_us for intent, _ in members),
        last_settled_at_us=max((s.settled_at_us for s in settled), default=None),
        queue_s=spread([s.queue_s for s in settled if s.queue_s is not None]),
        cold_start_s=spread(cold_starts),
        gateway_ttft_s=spread([s.gateway_ttft_s for s in settled if s.gateway_ttft_s is not None]),
        itl_mean_s=spread([s.itl_mean_s for s in settled if s.itl_mean_s is not None]),
    )


def busy_us_by_deployment(query: UsageQuery, recorded: Iterable[Recorded]) -> Busy:
    """Return microseconds with at least one request running, summed over replicas, by deployment and attempt's tier.

    Running begins when the slot is held (`started_at_us` + `queue_s`). Only attempts of requests that arrived in the
    window count, cut at its ends.
    """
    runs: dict[tuple[str, str, str], list[tuple[int, int]]] = defaultdict(list)
    for intent, settlement in recorded:
        if settlement is None or not _is_inside(query, intent):
            continue
        for attempt in settlement.attempts:
            if attempt.replica_id is not None:
                start_us = max(attempt.started_at_us + round(attempt.queue_s * _US_PER_S), query.since_us)
                end_us = min(attempt.ended_at_us, query.until_us)
                runs[intent.deployment, attempt.tier, attempt.replica_id].append((start_us, end_us))
    busy: Counter[tuple[str, str]] = Counter()
    for (deployment, tier, _), spans in runs.items():
        covered_to_us = query.since_us
        for start_us, end_us in sorted(spans):
            busy[deployment, tier] += max(0, end_us - max(start_us, covered_to_us))
            covered_to_us = max(covered_to_us, end_us)
    return busy


def capacity_rows(
    query: UsageQuery,
    intervals: Iterable[ReplicaInterval],
    *,
    busy_us: Busy,
    output_tokens: Mapping[tuple[str, str], int],
) -> tuple[CapacityRow, ...]:
    """Add up what replicas held inside the window, by deployment and tier.

    Args:
        intervals: those outside the window are ignored, open ones reach to its end.
        busy_us: as `busy_us_by_deployment` returns it.
        output_tokens: of the window's requests, by deployment and tier.
    """
    members: dict[tuple[str, str], list[tuple[ReplicaInterval, float]]] = defaultdict(list)
    for interval in intervals:
        end_us = query.until_us if interval.ended_at_us is None else min(interval.ended_at_us, query.until_us)
        length_s = (end_us - max(interval.started_at_us, query.since_us)) / _US_PER_S
        if length_s > 0:
            members[interval.deployment, interval.tier].append((interval, length_s))
    return tuple(
        CapacityRow(
            deployment=deployment,
            tier=tier,
            num_replicas=len({interval.replica_id for interval, _ in held}),
            reserved_s=sum(length_s for _, length_s in held),
            ready_s=sum(length_s for interval, length_s in held if interval.status in SERVING_STATUSES),
            busy_s=busy_us.get((deployment, tier), 0) / _US_PER_S,
            memory_byte_s=sum(interval.memory_bytes * length_s for interval, length_s in held),
            core_s=sum(interval.cores * length_s for interval, length_s in held),
            gpu_s=sum(interval.gpus * length_s for interval, length_s in held),
            output_tokens=output_tokens.get((deployment, tier), 0),
        )
        for (deployment, tier), held in sorted(members.items())
    )


def usage_report(query: UsageQuery, recorded: Sequence[Recorded], intervals: Iterable[ReplicaInterval]) -> UsageReport:
    """Answer a query from rows held in memory."""
    by_deployment = request_rows(UsageQuery(query.since_us, query.until_us, ("deployment", "tier")), recorded)
    return UsageReport(
        query=query,
        rows=request_rows(query, recorded),
        capacity=capacity_rows(
            query,
            intervals,
            busy_us=busy_us_by_deployment(query, recorded),
            output_tokens={(row.group[0], row.group[1]): row.output_tokens for row in by_deployment},
        ),
    )
