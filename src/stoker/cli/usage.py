"""`stoker usage`: tokens, prices, waits and capacity from the ledger."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from stoker.cli import options
from stoker.cli.terminal import print_json, print_table, say, seconds


def usage(
    ctx: typer.Context,
    since: Annotated[str, typer.Option(help="24h, 7d, or a time such as 2026-11-21T08:00.")] = "24h",
    until: Annotated[str | None, typer.Option(help="Likewise; default: now.")] = None,
    by: Annotated[str, typer.Option(help="deployment, key, tenant, tier, day; several by comma.")] = "deployment",
    as_json: options.JSON = False,
) -> None:
    """Show what was asked, what it took and what it cost."""
    query = {"since": since, "by": by, **({"until": until} if until else {})}
    report = options.client(ctx).get(f"/admin/usage?{urlencode(query)}")
    if as_json:
        print_json(report)
        return
    dimensions = report["by"]
    say(f"from {report['since']} until {report['until']}")
    print_table(
        (
            *(name.upper() for name in dimensions),
            "REQUESTS>", "OK>", "INPUT>", "CACHED>", "OUTPUT>", "TTFT P50>", "P99>", "QUEUE P99>", "COLD>", "USD>",
        ),
        (
            (
                *(row[name] for name in dimensions),
                row["num_requests"],
                row["outcomes"].get("completed", 0),
                row["input_tokens"],
                row["cached_input_tokens"],
                row["output_tokens"],
                seconds(row["gateway_ttft_s"]["p50"]),
                seconds(row["gateway_ttft_s"]["p99"]),
                seconds(row["queue_s"]["p99"]),
                row["num_cold_starts"],
                _price(row),
            )
            for row in report["rows"]
        ),
        empty="no requests in this time",
    )  # fmt: skip
    if report["capacity"]:
        print_table(
            ("DEPLOYMENT", "TIER", "REPLICAS>", "RESERVED>", "READY>", "BUSY>", "UTILISED>", "TOKENS/S RESERVED>"),
            (
                (
                    row["deployment"],
                    row["tier"],
                    row["num_replicas"],
                    seconds(row["reserved_s"]),
                    seconds(row["ready_s"]),
                    seconds(row["busy_s"]),
                    "–" if row["utilisation_ratio"] is None else f"{row['utilisation_ratio']:.0%}",
                    _rate(row["effective_output_tokens_per_s"]),
                )
                for row in report["capacity"]
            ),
            empty="",
        )


def _price(row: dict[str, Any]) -> str:
    """Write dollars; what nobody priced is said so, never shown as zero."""
    unpriced = row["num_unpriced"]
    if unpriced and not row["price_nanousd"]:
        return f"unpriced ({unpriced})"
    return str(row["price_usd"]) + (f" + {unpriced} unpriced" if unpriced else "")


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
