"""Where and when a benchmark ran: versions, cores, kernel, date. Touches /proc, the clock and installed metadata."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PACKAGES = ("stoker", "xllamacpp", "uvicorn", "uvloop", "httptools", "orjson")
REPOSITORY = Path(__file__).resolve().parent.parent
SCRATCH = REPOSITORY / ".bench"


def cpu_model() -> str:
    """The processor's name as the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def total_memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def filesystem_of(path: Path) -> str:
    """The type of the filesystem that holds `path`, such as ext4."""
    stat = shutil.which("stat")
    if stat is None:
        return "unknown"
    shown = subprocess.run([stat, "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or "unknown"


def sync_times_ms(folder: Path, num_writes: int = 100) -> list[float]:
    """How long this disk takes to make one appended 4-KiB block durable: what any durable ledger waits for."""
    times_ms = []
    with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(num_writes):
            file.write(bytes(4096))
            started_s = time.monotonic()
            os.fdatasync(file.fileno())
            times_ms.append((time.monotonic() - started_s) * 1e3)
    return times_ms


def load_average() -> list[float]:
    """The 1, 5 and 15 minute averages: tells whether something else ran meanwhile."""
    return [round(value, 2) for value in os.getloadavg()]


def _commit() -> str | None:
    shown = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(*, is_quick: bool, command: str) -> dict[str, Any]:
    """The set-up that stands at the head of each report."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "is_quick": is_quick,
        "commit": _commit(),
        "cpu": cpu_model(),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(total_memory_bytes() / 2**30, 1),
        "kernel": platform.release(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "load_average_before": load_average(),
    }
