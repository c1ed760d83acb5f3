"""Writes the tables of `docs/benchmarks.md` from the JSON that the benchmarks left. Touches those files only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import REPOSITORY

RESULTS = REPOSITORY / "docs" / "benchmarks"
PAGE = REPOSITORY / "docs" / "benchmarks.md"
_BLOCK = re.compile(r"(<!-- bench:(?P<name>[a-z_]+) -->\n).*?(<!-- /bench:(?P=name) -->)", re.DOTALL)
_SIGNS = {"at_most": "≤", "at_least": "≥"}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; every column after the first is aligned right. Pure."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def render(document: Mapping[str, Any]) -> str:
    """One benchmark's set-up, goals and figures as Markdown. Pure."""
    parts = [_set_up(document["setup"]), _goals(document["goals"])]
    renderer = _RENDERERS.get(document["name"])
    if renderer is not None:
        parts.append(renderer(document["results"]))
    return "\n\n".join(parts)


def _set_up(set_up: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in set_up["versions"].items())
    haste = " **Quick run: few samples.**" if set_up["is_quick"] else ""
    return (
        f"{set_up['date']}, commit {set_up['commit']}; {set_up['num_cores']} cores of {set_up['cpu']}, "
        f"{set_up['memory_gib']} GiB, Linux {set_up['kernel']}, Python {set_up['python']}; {versions}. "
        f"Load average before {set_up['load_average_before'][0]}. `{set_up['command']}`, "
        f"{set_up.get('took_s', 0):.0f} s.{haste}"
    )


def _goals(goals: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (f"`{key}`: {goal['says']}", goal["value"], f"{_SIGNS[goal['bound']]} {goal['goal']:g}",
         "yes" if goal["met"] else "**no**")
        for key, goal in goals.items()
    ]  # fmt: skip
    return table(("Goal", "measured", "bound", "met"), rows)


def _quantiles(figures: Mapping[str, float]) -> tuple[object, ...]:
    return (figures["n"], figures.get("p50"), figures.get("p99"), figures.get("min"))


def _cold_start(results: Mapping[str, Any]) -> str:
    def starts(names: Mapping[str, Any]) -> str:
        steps = list(dict.fromkeys(step for figures in names.values() for step in figures["steps_p50_ms"]))
        rows = [
            (_contender(name, results), *_quantiles(figures["first_token_ms"]),
             *(figures["steps_p50_ms"].get(step) for step in steps))
            for name, figures in names.items()
        ]  # fmt: skip
        return table(("ms to the first token", "n", "p50", "p99", "min", *(f"{step} (p50)" for step in steps)), rows)

    swept = [(name, *_quantiles(figures)) for name, figures in results["sweep"]["contenders"].items()]
    three = results["three_at_once"]
    threes = {"waiting engines": three["waiting_engines"], "real engines": three["real_engines"]}
    threes |= {f"bare engines, {name}": figures for name, figures in three["bare_engines"].items()}
    three_rows = [
        (name, *_quantiles(its["until_all_have_a_token_ms"]), its["slowest_alone_p50_ms"], its["ratio"])
        for name, its in threes.items()
    ]
    return "\n\n".join(
        (
            f"Page cache hot. Stoker takes {results['ratio_to_best_flags']:.2f}× the best flags and "
            f"{results['ratio_to_defaults']:.2f}× the defaults.",
            starts(results["hot"]),
            f"Page cache dropped by {results['dropped_how']}. Stoker takes "
            f"{results['ratio_to_best_flags_dropped']:.2f}× the best flags and "
            f"{results['ratio_to_defaults_dropped']:.2f}× the defaults.",
            starts(results["dropped"]),
            f"Three at once, on {three['num_cores']} cores.",
            table(("ms until all have a token", "n", "p50", "p99", "min", "slowest alone (p50)", "ratio"), three_rows),
            "The sweep of the bare engine's flags, the better half staying in each round.",
            table(("ms to the first token", "n", "p50", "p99", "min"), swept),
        )
    )


def _contender(name: str, results: Mapping[str, Any]) -> str:
    if name == "stoker":
        return "Stoker"
    return f"bare, {name}" + (" (best)" if name == results["best_flags"]["name"] else "")


def _scenarios(scenarios: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            its["scenario"],
            its["proxied"]["latency_ms"]["n"],
            its["proxied"]["requests_per_s"],
            its["proxied"].get("cpu_us_per_request"),
            its["direct"]["latency_ms"]["p50"],
            its["proxied"]["latency_ms"]["p50"],
            its["proxied"]["latency_ms"]["p99"],
            its["added_p50_ms"],
            its["added_p99_ms"],
            its["added_first_byte_p50_ms"],
        )
        for its in scenarios
    ]
    head = (
        "load", "n", "requests/s", "CPU µs/request", "direct p50 ms", "p50 ms", "p99 ms", "added p50", "added p99",
        "added first byte p50",
    )  # fmt: skip
    return table(head, rows)


def _overhead(results: Mapping[str, Any]) -> str:
    stoker = results["stoker"]
    parts = [
        f"Stoker ({len(stoker['processes'])} processes, {stoker['memory_pss_mib']:.0f} MiB), key checked, ledger "
        f"durable on {stoker['state_filesystem']}, whose disk makes one block durable in "
        f"{stoker['disk_sync_ms']['p50']:.2f} ms (p50; p99 {stoker['disk_sync_ms']['p99']:.2f}). Other programs had "
        f"{stoker['core_used_by_others_ratio']:.0%} of Stoker's core meanwhile.",
        _scenarios(results["scenarios"]),
        "What load generator and stand-in upstream reach without a proxy, on the one core that they share: "
        + "; ".join(f"{name}: {rate:,.0f} requests/s" for name, rate in results["ceiling"].items())
        + ".",
    ]
    if litellm := results.get("litellm"):
        parts += [
            f"LiteLLM {litellm['version']} ({litellm['set_up']}; {litellm['memory_pss_mib']:.0f} MiB, "
            f"{litellm['start_s']:.1f} s to start), same upstream, load and core:",
            _scenarios(litellm["scenarios"]),
        ]
    return "\n\n".join(parts)


_RENDERERS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {"cold_start": _cold_start, "overhead": _overhead}


def fill(page: str, documents: Mapping[str, Mapping[str, Any]]) -> str:
    """Replace what stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`. Pure.

    Raises:
        KeyError: a benchmark has no place on the page; its name.
    """
    places = {match["name"] for match in _BLOCK.finditer(page)}
    for name in documents:
        if name not in places:
            raise KeyError(name)

    def block(match: re.Match[str]) -> str:
        document = documents.get(match["name"])
        body = render(document) if document else "Not measured yet."
        return f"{match[1]}\n{body}\n\n{match[3]}"

    return _BLOCK.sub(block, page)


def rewrite(page_path: Path = PAGE, results: Path = RESULTS) -> Path:
    """Fill the page's tables from every JSON file in `results`; the page's path."""
    documents = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    page_path.write_text(fill(page_path.read_text(), documents))
    return page_path
