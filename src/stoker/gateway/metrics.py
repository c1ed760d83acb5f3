"""The gateway's counters, cheap to bump, turned into Prometheus families at a scrape. Touches a collector registry."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from stoker.ledger.records import Outcome

CONTENT_TYPE: Final = b"text/plain; version=1.0.0; charset=utf-8; escaping=underscores"
TTFT_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
DURATION_BUCKETS_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)


class _Histogram:
    """Bucket counts by upper bound; the last bucket has none."""

    __slots__ = ("bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, value_s: float) -> None:
        self.counts[bisect_left(self.bounds_s, value_s)] += 1
        self.sum_s += value_s

    def buckets(self) -> list[tuple[str, float]]:
        total = 0
        found: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self.bounds_s), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class DeploymentMetrics:
    """What is counted for one deployment on one tier; written by the event loop alone."""

    __slots__ = (
        "cached_input_tokens",
        "duration",
        "input_tokens",
        "num_cold_starts",
        "num_in_flight",
        "num_retries",
        "outcomes",
        "output_tokens",
        "queue_s",
        "ttft",
    )  # fmt: skip

    def __init__(self) -> None:
        self.outcomes: dict[Outcome, int] = {}
        self.ttft = _Histogram(TTFT_BUCKETS_S)
        self.duration = _Histogram(DURATION_BUCKETS_S)
        self.queue_s = 0.0
        self.num_in_flight = self.num_cold_starts = self.num_retries = 0
        self.input_tokens = self.cached_input_tokens = self.output_tokens = 0


class GatewayMetrics(Collector):
    """All that the gateway counts. Labels are deployment, tier, outcome and error code: never a key or a request.

    Args:
        registry: where to register; other rooms' collectors on it are exported by the same `/metrics`.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._by_deployment: dict[tuple[str, str], DeploymentMetrics] = {}
        self._turned_away: dict[str, int] = {}
        self.registry.register(self)

    def of(self, deployment: str, tier: str) -> DeploymentMetrics:
        """Return the counters of a deployment *that exists*: a client's spelling must never become a label."""
        found = self._by_deployment.get((deployment, tier))
        if found is None:
            found = self._by_deployment[deployment, tier] = DeploymentMetrics()
        return found

    def count_turned_away(self, code: str) -> None:
        """Count a request that reached no deployment, by error code."""
        self._turned_away[code] = self._turned_away.get(code, 0) + 1

    def exposition(self) -> bytes:
        """Write everything on the registry in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """Yield the families; called by the registry."""
        labels = ("deployment", "tier")
        requests = CounterMetricFamily(
            "stoker_requests", "Requests that reached a deployment", labels=(*labels, "outcome")
        )
        ttft = HistogramMetricFamily(
            "stoker_gateway_ttft_seconds", "Whole request in until the first output byte out", labels=labels
        )
        duration = HistogramMetricFamily(
            "stoker_gateway_request_seconds", "Request in until it was settled", labels=labels
        )
        in_flight = GaugeMetricFamily(
            "stoker_requests_in_flight", "Requests between arrival and settlement", labels=labels
        )
        queue = CounterMetricFamily("stoker_queue_seconds", "Time spent waiting for slots", labels=labels)
        cold = CounterMetricFamily("stoker_cold_started_requests", "Requests that waited for a start", labels=labels)
        retries = CounterMetricFamily("stoker_retries", "Attempts made again on another replica", labels=labels)
        tokens = CounterMetricFamily("stoker_tokens", "Tokens settled", labels=(*labels, "kind"))
        for key, one in self._by_deployment.items():
            for outcome, count in one.outcomes.items():
                requests.add_metric((*key, outcome), count)
            ttft.add_metric(key, one.ttft.buckets(), one.ttft.sum_s)
            duration.add_metric(key, one.duration.buckets(), one.duration.sum_s)
            in_flight.add_metric(key, one.num_in_flight)
            queue.add_metric(key, one.queue_s)
            cold.add_metric(key, one.num_cold_starts)
            retries.add_metric(key, one.num_retries)
            tokens.add_metric((*key, "input"), one.input_tokens)
            tokens.add_metric((*key, "cached_input"), one.cached_input_tokens)
            tokens.add_metric((*key, "output"), one.output_tokens)
        turned_away = CounterMetricFamily("stoker_turned_away", "Requests that reached no deployment", labels=("code",))
        for code, count in self._turned_away.items():
            turned_away.add_metric((code,), count)
        yield from (requests, ttft, duration, in_flight, queue, cold, retries, tokens, turned_away)
