"""Finds the processes that belong to one Stoker by the state directory in their command line or environment."""

from __future__ import annotations

import os
import time
from pathlib import Path


def belonging_to(state_dir: Path) -> dict[int, str]:
    """Return pid → command line of every living process that names `state_dir`, this one excluded."""
    mark = str(state_dir).encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            names_it = mark in command or mark in (entry / "environ").read_bytes()
            is_dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            continue
        if names_it and not is_dead:
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def wait_until_none(state_dir: Path, *, within_s: float) -> dict[int, str]:
    """Wait until no process of `state_dir` lives; return those that still do after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while (left := belonging_to(state_dir)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def keeper_pid(state_dir: Path) -> int:
    """Return the pid of the keeper of `state_dir`."""
    (pid,) = [pid for pid, command in belonging_to(state_dir).items() if "stoker.fleet.keeper" in command]
    return pid
