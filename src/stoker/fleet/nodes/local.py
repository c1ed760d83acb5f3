"""What this machine offers to engines. Reads /proc, /sys and PATH; changes nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_BYTES = 2**60
"""Cgroup v1 writes a limit near 2^63 for "none"."""
_NVIDIA_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One machine, as far as it matters.

    Attributes:
        cores: usable ones, by affinity and cgroup quota, at least 1.
        memory_bytes: the machine's, or its cgroup's limit when that is lower.
        memory_available_bytes: what could be used now without swapping.
        cgroup: `v2`, `v1`, `hybrid` or `none`.
        is_cgroup_delegated: whether this user may make groups of its own.
        gpus: names, as the driver tells them.
        engines: engine kinds that can be started, with where they were found.
    """

    cores: int
    memory_bytes: int
    memory_available_bytes: int
    swap_bytes: int
    cgroup: str
    is_cgroup_delegated: bool
    has_criu: bool
    has_kvm: bool
    gpus: tuple[str, ...]
    engines: dict[str, str]


def inspect_node(*, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> NodeFacts:
    """Look once; takes milliseconds, or seconds where a GPU driver answers slowly."""
    meminfo = _meminfo(proc)
    total = meminfo.get("MemTotal", 0)
    available = meminfo.get("MemAvailable", total)
    for limit, used in _memory_groups(proc, cgroups):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    has_v2 = (cgroups / "cgroup.controllers").exists()
    has_v1 = (cgroups / "memory").is_dir()
    has_unified = (cgroups / "unified").is_dir()
    return NodeFacts(
        cores=_cores(proc, cgroups),
        memory_bytes=total,
        memory_available_bytes=available,
        swap_bytes=meminfo.get("SwapTotal", 0),
        cgroup="v2" if has_v2 else "hybrid" if has_v1 and has_unified else "v1" if has_v1 else "none",
        is_cgroup_delegated=os.access(_own_group(proc, cgroups, has_v2=has_v2), os.W_OK),
        has_criu=shutil.which("criu") is not None,
        has_kvm=os.access("/dev/kvm", os.R_OK | os.W_OK),
        gpus=_gpus(),
        engines=_engines(),
    )


def _meminfo(proc: Path) -> dict[str, int]:
    sizes = {}
    with contextlib.suppress(OSError):
        for line in (proc / "meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            words = rest.split()
            if words and words[0].isdigit():
                sizes[name] = int(words[0]) * 1024
    return sizes


def _memory_groups(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of every limited group between ours and the root, in either hierarchy.

    Clean page cache is given back when it is wanted, so it does not count as used. Source: kernel documentation,
    cgroup-v1/memory.rst and cgroup-v2.rst.
    """
    v1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    v2 = ("", "memory.max", "memory.current", "inactive_file")
    for controller, limit_file, used_file, cache_key in (v1, v2):
        for group in _groups(proc, cgroups, controller):
            with contextlib.suppress(OSError, ValueError):
                limit = int((group / limit_file).read_text())
                if limit < _UNLIMITED_BYTES:
                    used = int((group / used_file).read_text())
                    yield limit, max(0, used - _stat(group / "memory.stat", cache_key))


def _groups(proc: Path, cgroups: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of our group and all those above it; the root's own only where nothing else is visible."""
    path = _group_of(proc, controller)
    if path is None:
        return
    base = cgroups / controller
    parts = [part for part in path.split("/") if part]
    for length in range(len(parts), -1, -1):
        yield base.joinpath(*parts[:length])


def _stat(path: Path, key: str) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text().splitlines():
            if line.startswith(key + " "):
                return int(line.split()[1])
    return 0


def _group_of(proc: Path, controller: str) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                return path
    return None


def _own_group(proc: Path, cgroups: Path, *, has_v2: bool) -> Path:
    group = _group_of(proc, "" if has_v2 else "freezer") or "/"
    return (cgroups if has_v2 else cgroups / "freezer") / group.lstrip("/")


def _cores(proc: Path, cgroups: Path) -> int:
    """Whole cores by affinity and by the tightest quota above us, at least 1."""
    usable = len(os.sched_getaffinity(0))
    for group in _groups(proc, cgroups, ""):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            usable = min(usable, max(1, int(quota) // int(period)))
    for group in _groups(proc, cgroups, "cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota_us = int((group / "cpu.cfs_quota_us").read_text())
            period_us = int((group / "cpu.cfs_period_us").read_text())
            if quota_us > 0:
                usable = min(usable, max(1, quota_us // period_us))
    return max(1, usable)


def _gpus() -> tuple[str, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=_NVIDIA_LIMIT_S, check=True,
        )  # fmt: skip
        return tuple(line.strip() for line in listed.stdout.splitlines() if line.strip())
    return ()


def _engines() -> dict[str, str]:
    found = {}
    wheel = importlib.util.find_spec("xllamacpp")
    if wheel is not None and wheel.origin is not None:
        found["llama.cpp (embedded)"] = os.path.dirname(wheel.origin)
    for name in ("llama-server", "vllm"):
        if program := shutil.which(name):
            found[name] = program
    return found
