"""What this machine offers to engines. Reads /proc, /sys and PATH; changes nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
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


def inspect_node() -> NodeFacts:
    """Look once; takes milliseconds, or seconds where a GPU driver answers slowly."""
    meminfo = _meminfo()
    limit = _cgroup_memory_limit()
    total = min(meminfo.get("MemTotal", 0), limit)
    root = Path("/sys/fs/cgroup")
    has_v2 = (root / "cgroup.controllers").exists()
    has_v1 = (root / "memory").is_dir()
    has_unified = (root / "unified").is_dir()
    return NodeFacts(
        cores=_cores(),
        memory_bytes=total,
        memory_available_bytes=min(meminfo.get("MemAvailable", total), limit),
        swap_bytes=meminfo.get("SwapTotal", 0),
        cgroup="v2" if has_v2 else "hybrid" if has_v1 and has_unified else "v1" if has_v1 else "none",
        is_cgroup_delegated=os.access(_own_group(root, has_v2=has_v2), os.W_OK),
        has_criu=shutil.which("criu") is not None,
        has_kvm=os.access("/dev/kvm", os.R_OK | os.W_OK),
        gpus=_gpus(),
        engines=_engines(),
    )


def _meminfo() -> dict[str, int]:
    sizes = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            words = rest.split()
            if words and words[0].isdigit():
                sizes[name] = int(words[0]) * 1024
    return sizes


def _cgroup_memory_limit() -> int:
    """Return the lowest limit between our group and the root of either hierarchy."""
    lowest = _UNLIMITED_BYTES
    for controller, file in ((b"memory", "memory.limit_in_bytes"), (b"", "memory.max")):
        group = _group_of(controller)
        if group is None:
            continue
        base = Path("/sys/fs/cgroup") / controller.decode()
        while True:
            with contextlib.suppress(OSError, ValueError):
                lowest = min(lowest, int((base / group.lstrip("/") / file).read_text()))
            if group in {"/", ""}:
                break
            group = os.path.dirname(group)
    return lowest


def _group_of(controller: bytes) -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_bytes().splitlines():
            _, controllers, path = line.split(b":", 2)
            if controller in controllers.split(b","):
                return path.decode()
    return None


def _own_group(root: Path, *, has_v2: bool) -> Path:
    group = _group_of(b"" if has_v2 else b"freezer") or "/"
    return (root if has_v2 else root / "freezer") / group.lstrip("/")


def _cores() -> int:
    usable = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        usable = min(usable, max(1, int(quota) // int(period)))
    with contextlib.suppress(OSError, ValueError):
        quota_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
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
