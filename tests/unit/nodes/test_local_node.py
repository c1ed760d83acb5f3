"""What a machine is read to offer, from made-up /proc and cgroup trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stoker.fleet.nodes.local import inspect_node

GIB = 2**30


class Machine:
    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.cgroups = folder / "cgroup"
        self.write(self.proc / "meminfo", f"MemTotal: {8 * GIB // 1024} kB\nMemAvailable: {6 * GIB // 1024} kB\n")
        self.write(self.proc / "self/cgroup", "")
        self.cgroups.mkdir()

    def write(self, path: Path, text: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))

    def look(self):  # type: ignore[no-untyped-def]
        return inspect_node(proc=self.proc, cgroups=self.cgroups)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_without_limits_offers_what_it_has(machine: Machine) -> None:
    facts = machine.look()
    assert (facts.memory_bytes, facts.memory_available_bytes, facts.swap_bytes) == (8 * GIB, 6 * GIB, 0)
    assert facts.cores == len(os.sched_getaffinity(0))
    assert facts.cgroup == "none"


@pytest.mark.parametrize("limited", ["", "app.slice", "app.slice/s.scope"])
def test_a_v2_limit_anywhere_above_us_counts(machine: Machine, limited: str) -> None:
    machine.write(machine.cgroups / "cgroup.controllers", "cpu memory")
    machine.write(machine.proc / "self/cgroup", "0::/app.slice/s.scope\n")
    group = machine.cgroups / limited
    machine.write(group / "memory.max", 2 * GIB)
    machine.write(group / "memory.current", GIB)
    machine.write(group / "memory.stat", f"anon 1\ninactive_file {GIB // 2}\n")
    facts = machine.look()
    assert facts.cgroup == "v2"
    assert facts.memory_bytes == 2 * GIB
    assert facts.memory_available_bytes == 2 * GIB - GIB // 2, "clean page cache is given back"


def test_no_limit_is_written_as_max_or_as_a_huge_number(machine: Machine) -> None:
    machine.write(machine.proc / "self/cgroup", "5:memory:/x\n0::/x\n")
    machine.write(machine.cgroups / "x/memory.max", "max")
    machine.write(machine.cgroups / "memory/x/memory.limit_in_bytes", 2**63 - 4096)
    assert machine.look().memory_bytes == 8 * GIB


def test_a_v1_limit_counts(machine: Machine) -> None:
    machine.write(machine.proc / "self/cgroup", "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n")
    group = machine.cgroups / "memory/docker/abc"
    machine.write(group / "memory.limit_in_bytes", GIB)
    machine.write(group / "memory.usage_in_bytes", GIB // 4)
    facts = machine.look()
    assert (facts.cgroup, facts.memory_bytes, facts.memory_available_bytes) == ("v1", GIB, GIB * 3 // 4)


@pytest.mark.parametrize(("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)])
def test_a_quota_bounds_the_cores_but_leaves_one(machine: Machine, quota: str, cores: int | None) -> None:
    machine.write(machine.proc / "self/cgroup", "0::/a/b\n")
    machine.write(machine.cgroups / "a/cpu.max", quota)
    assert machine.look().cores == (cores or len(os.sched_getaffinity(0)))


def test_a_v1_quota_bounds_the_cores(machine: Machine) -> None:
    machine.write(machine.proc / "self/cgroup", "3:cpu:/a\n")
    machine.write(machine.cgroups / "cpu/a/cpu.cfs_quota_us", 100_000)
    machine.write(machine.cgroups / "cpu/a/cpu.cfs_period_us", 100_000)
    assert machine.look().cores == 1


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    facts = inspect_node(proc=tmp_path, cgroups=tmp_path)
    assert (facts.memory_bytes, facts.cgroup) == (0, "none")


def test_the_real_machine_can_be_read() -> None:
    facts = inspect_node()
    assert facts.cores >= 1
    assert 0 < facts.memory_available_bytes <= facts.memory_bytes
