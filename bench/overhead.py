"""What Stoker adds to a request: CPU, latency and first-byte time against the same upstream asked directly.

The load generator and the stand-in upstream share one core, what is measured has the other to itself. Direct and
proxied runs alternate, so that a change of the machine's mood falls on both. Touches processes, sockets and files.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.litellm_peer import VERSION as LITELLM_VERSION
from bench.litellm_peer import LiteLlm
from bench.machine import sync_times_ms
from bench.native_tools import Load, LoadResult, Upstream, run_load
from bench.processes import core_busy_s, cpu_s, proportional_memory_bytes, two_cores
from bench.statistics import Goal, median, quantile, summarise
from bench.stoker_server import BenchedStoker

UPSTREAM_DELAYS_S = {"instant": 0.0, "5ms": 0.005}
NUM_CHUNKS = 20
SLOTS = 256

CPU_GOAL = Goal("cpu_us_per_request", 100.0, "at_most", "CPU µs a request, summed over all Stoker processes; the worst")
P50_GOAL = Goal("added_p50_ms", 0.5, "at_most", "ms added to the p50 with the 5-ms upstream; the worst load")
TTFT_GOAL = Goal("added_ttft_ms", 1.0, "at_most", "ms added to a stream's first byte (p50); the worst load")
# No issue names a bound for the ratio: ten times is what a measured claim of "an order of magnitude" would take.
RATIO_GOAL = Goal("litellm_rps_ratio", 10.0, "at_least", "Stoker's requests/s ÷ LiteLLM's, same load, same core")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One shape of load."""

    upstream: str
    connections: int
    is_stream: bool = False
    rate_per_s: float | None = None

    @property
    def name(self) -> str:
        rate = f", {self.rate_per_s:.0f} requests/s" if self.rate_per_s else ""
        kind = f"{NUM_CHUNKS}-chunk stream" if self.is_stream else "whole answer"
        return f"{self.upstream} upstream, {kind}, {self.connections} connections{rate}"

    @property
    def is_saturating(self) -> bool:
        """Whether the proxy is kept busy, so that CPU a request is that of a loaded gateway."""
        return self.rate_per_s is None and self.connections >= 32

    def load(self, duration_s: float, headers: Sequence[str]) -> Load:
        """What the load generator is asked for."""
        body: dict[str, Any] = {
            "model": self.upstream,
            "messages": [{"role": "user", "content": "How is the fire tended?"}],
            "max_tokens": NUM_CHUNKS,
        }
        if self.is_stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return Load(
            body, connections=self.connections, rate_per_s=self.rate_per_s,
            duration_s=duration_s if self.rate_per_s is None else 2 * duration_s,  # few requests a second need longer
            num_warmup=2 * self.connections, headers=headers,
        )  # fmt: skip


SCENARIOS = (
    Scenario("instant", 1),
    Scenario("instant", 8),
    Scenario("instant", 32),
    Scenario("5ms", 1),
    Scenario("5ms", 8),
    Scenario("5ms", 8, rate_per_s=50),
    Scenario("5ms", 64),
    Scenario("instant", 1, is_stream=True),
    Scenario("instant", 32, is_stream=True),
    Scenario("5ms", 1, is_stream=True),
    Scenario("5ms", 8, is_stream=True),
    Scenario("5ms", 8, is_stream=True, rate_per_s=50),
)
PEER_SCENARIOS = (
    Scenario("instant", 32),
    Scenario("5ms", 1),
    Scenario("5ms", 1, is_stream=True),
    Scenario("instant", 32, is_stream=True),
)


class Proxy(Protocol):
    """Something that stands in front of the upstreams."""

    headers: tuple[str, ...]

    @property
    def target(self) -> tuple[str, ...]: ...

    def pids(self) -> list[int]: ...


@dataclass(slots=True)
class Tally:
    """All rounds of one scenario against one server."""

    requests_per_s: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    first_bytes_ms: list[float] = field(default_factory=list)
    cpu_us_per_request: list[float] = field(default_factory=list)

    def add(self, result: LoadResult, cpu_used_s: float | None) -> None:
        self.requests_per_s.append(result.requests_per_s)
        self.latencies_ms += result.latencies_ms
        self.first_bytes_ms += result.first_bytes_ms
        if cpu_used_s is not None:
            # The warm-up requests cost CPU too, so they are counted.
            self.cpu_us_per_request.append(cpu_used_s * 1e6 / result.report["finished"])

    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "requests_per_s": round(median(self.requests_per_s), 1),
            "latency_ms": summarise(self.latencies_ms),
            "first_byte_ms": summarise(self.first_bytes_ms),
        }
        if self.cpu_us_per_request:
            figures["cpu_us_per_request"] = round(median(self.cpu_us_per_request), 1)
        return figures


def compare(scenario: Scenario, direct: Tally, proxied: Tally) -> dict[str, Any]:
    """One scenario's entry in the report, with what the proxy added. Pure."""

    def added(share: float, name: str) -> float:
        return round(quantile(getattr(proxied, name), share) - quantile(getattr(direct, name), share), 3)

    return {
        "scenario": scenario.name,
        "upstream": scenario.upstream,
        "connections": scenario.connections,
        "is_stream": scenario.is_stream,
        "rate_per_s": scenario.rate_per_s,
        "direct": direct.figures(),
        "proxied": proxied.figures(),
        "added_p50_ms": added(0.50, "latencies_ms"),
        "added_p99_ms": added(0.99, "latencies_ms"),
        "added_first_byte_p50_ms": added(0.50, "first_bytes_ms"),
    }


def goals_of(compared: Sequence[Mapping[str, Any]], litellm: Mapping[str, Any] | None) -> dict[str, Any]:
    """Hold the figures against the goals; each takes the worst load that it speaks of. Pure."""
    # Latency goals speak of a gateway that is not saturated: beyond that, "added" is queueing by definition.
    calm = [c for c in compared if c["upstream"] == "5ms" and c["connections"] <= 8]
    busy = [c for c in compared if not c["is_stream"] and c["rate_per_s"] is None and c["connections"] >= 32]
    goals = {
        CPU_GOAL.key: CPU_GOAL.check(max((c["proxied"]["cpu_us_per_request"] for c in busy), default=None)),
        P50_GOAL.key: P50_GOAL.check(max((c["added_p50_ms"] for c in calm if not c["is_stream"]), default=None)),
        TTFT_GOAL.key: TTFT_GOAL.check(
            max((c["added_first_byte_p50_ms"] for c in calm if c["is_stream"]), default=None)
        ),
    }
    if litellm is not None:
        goals[RATIO_GOAL.key] = RATIO_GOAL.check(litellm["requests_per_s_ratio"])
    return goals


def _one_run(proxy: Proxy, scenario: Scenario, duration_s: float, core: int | None) -> tuple[LoadResult, float]:
    before_s = cpu_s(proxy.pids())
    result = run_load(scenario.load(duration_s, proxy.headers), proxy.target, core=core)
    return result, cpu_s(proxy.pids()) - before_s


def _measure(
    scenarios: Sequence[Scenario], upstreams: Mapping[str, Upstream], proxy: Proxy, *, rounds: int, duration_s: float,
    core: int | None,
) -> list[dict[str, Any]]:  # fmt: skip
    tallies = {scenario: (Tally(), Tally()) for scenario in scenarios}
    for _ in range(rounds):
        for scenario, (direct, proxied) in tallies.items():
            direct.add(
                run_load(scenario.load(duration_s / 2, ()), upstreams[scenario.upstream].target, core=core), None
            )
            proxied.add(*_one_run(proxy, scenario, duration_s, core))
    return [compare(scenario, *pair) for scenario, pair in tallies.items()]


def _against_litellm(
    upstreams: Mapping[str, Upstream], stoker: Sequence[Mapping[str, Any]], *, is_quick: bool,
    cores: tuple[int | None, int | None],
) -> dict[str, Any]:  # fmt: skip
    with LiteLlm({name: upstream.url for name, upstream in upstreams.items()}, core=cores[0]) as peer:
        run_load(Scenario("instant", 4).load(3.0, peer.headers), peer.target, core=cores[1])  # its lazy imports
        compared = _measure(
            PEER_SCENARIOS, upstreams, peer, rounds=1, duration_s=4.0 if is_quick else 10.0, core=cores[1]
        )
        memory_bytes = proportional_memory_bytes(peer.pids())
        start_s = peer.started_in_s
    rate = {c["scenario"]: c["proxied"]["requests_per_s"] for c in stoker}
    busiest = PEER_SCENARIOS[0].name
    theirs = next(c["proxied"]["requests_per_s"] for c in compared if c["scenario"] == busiest)
    return {
        "version": LITELLM_VERSION,
        "set_up": "one worker, a master key, no database, no logging",
        "start_s": round(start_s, 2),
        "memory_pss_mib": round(memory_bytes / 2**20, 1),
        "scenarios": compared,
        "requests_per_s_ratio": round(rate[busiest] / theirs, 1),
    }


def run(*, is_quick: bool, has_peers: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure; returns the results and the goals."""
    cores = two_cores()
    rounds, duration_s = (1, 1.0) if is_quick else (3, 2.0)
    with ExitStack() as stack:
        upstreams = {
            name: stack.enter_context(Upstream(delay_s=delay_s, num_chunks=NUM_CHUNKS, core=cores[1]))
            for name, delay_s in UPSTREAM_DELAYS_S.items()
        }
        deployments = {
            name: {
                "model": "stand-in",
                "tier": "serverless",
                "min_replicas": 1,
                "keep_alive": "1h",
                "engine": {"kind": "openai", "url": upstream.url, "slots": SLOTS},
                "price": {"input_usd_per_million": "0.10", "output_usd_per_million": "0.40"},
            }
            for name, upstream in upstreams.items()
        }
        with BenchedStoker(deployments, core=cores[0]) as stoker:
            for name in deployments:
                stoker.chat(name)
            sync_ms = summarise(sync_times_ms(stoker.state_dir))
            began_s, busy_s, own_s = time.monotonic(), core_busy_s(cores[0]), stoker.cpu_s()
            compared = _measure(SCENARIOS, upstreams, stoker, rounds=rounds, duration_s=duration_s, core=cores[1])
            foreign_s = core_busy_s(cores[0]) - busy_s - (stoker.cpu_s() - own_s)
            facts = stoker.facts() | {
                "ledger_settlements": stoker.ledger_rows(),
                "disk_sync_ms": sync_ms,
                "core_used_by_others_ratio": round(max(0.0, foreign_s) / (time.monotonic() - began_s), 3),
            }
        litellm = _against_litellm(upstreams, compared, is_quick=is_quick, cores=cores) if has_peers else None
    saturated = [c for c in compared if c["rate_per_s"] is None and c["connections"] >= 32]
    results = {
        "pinning": {"measured": cores[0], "load_and_upstream": cores[1]},
        "rounds": rounds,
        "seconds_a_run": duration_s,
        "stoker": facts,
        "ceiling": {c["scenario"]: c["direct"]["requests_per_s"] for c in saturated},
        "scenarios": compared,
    }
    for c in saturated:
        if c["upstream"] == "instant" and c["direct"]["requests_per_s"] < 2 * c["proxied"]["requests_per_s"]:
            print(f"the load generator may be the bottleneck in: {c['scenario']}", file=sys.stderr)
    if litellm is not None:
        results["litellm"] = litellm
    return results, goals_of(compared, litellm)
