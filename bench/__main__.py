"""`python -m bench NAME [--json FILE] [--peers] [--quick]`: run a benchmark, or rewrite the tables. Prints."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bench import cold_start, machine, overhead, report
from bench.litellm_peer import PeerFailedError
from bench.native_tools import LoadFailedError, NoCompilerError

_BENCHES = {"cold_start": cold_start.run, "overhead": overhead.run}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Stoker, and say how.")
    parser.add_argument("name", choices=[*_BENCHES, "all", "report"])
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="default: docs/benchmarks/NAME.json, or .bench/results/NAME.json with --quick",
    )
    parser.add_argument("--peers", action="store_true", help="against LiteLLM too, installed under .bench/")
    parser.add_argument("--quick", action="store_true", help="a minute at most: fewer samples, wider error")
    return parser.parse_args(arguments)


def _run(name: str, *, json_path: Path, is_quick: bool, has_peers: bool) -> dict[str, Any]:
    command = " ".join(["python -m bench", name, *(["--quick"] * is_quick), *(["--peers"] * has_peers)])
    set_up = machine.describe(is_quick=is_quick, command=command)
    started_s = time.monotonic()
    results, goals = _BENCHES[name](is_quick=is_quick, has_peers=has_peers)
    set_up |= {"took_s": round(time.monotonic() - started_s, 1), "load_average_after": machine.load_average()}
    document = {"name": name, "setup": set_up, "goals": goals, "results": results}
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document, indent=2) + "\n")
    print(report.render(document))
    print(f"written to {json_path}")
    return document


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark or all; 0 when they ran (whether goals are met stands in the output), 1 when one could not."""
    asked = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # by way of every `with` block's end
    if asked.name == "report":
        print(f"rewrote {report.rewrite()}")
        return 0
    names = list(_BENCHES) if asked.name == "all" else [asked.name]
    if asked.json and len(names) > 1:
        print("--json takes one benchmark; `all` writes each to its own file", file=sys.stderr)
        return 1
    # A hasty figure must not stand on the page by accident.
    results = machine.SCRATCH / "results" if asked.quick else report.RESULTS
    for name in names:
        try:
            _run(
                name,
                json_path=asked.json or results / f"{name}.json",
                is_quick=asked.quick,
                has_peers=asked.peers,
            )
        except (NoCompilerError, LoadFailedError, PeerFailedError, RuntimeError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
