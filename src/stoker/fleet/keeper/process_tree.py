"""Parents, children and parent-death signals on Linux. Reads /proc, sends signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(sent: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when the *thread* that forked it ends; survives `execve`.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    _prctl(_PR_SET_PDEATHSIG, sent)


def become_subreaper() -> None:
    """Have orphans among this process's descendants come to it instead of to init.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def children_by_parent() -> dict[int, list[int]]:
    """Return parent pid → pids of its children that are not yet dead."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The command's name stands in parentheses and may hold anything, so the fields are read from behind it.
            fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] not in b"ZX":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    return children


def descendants(pid: int) -> list[int]:
    """Return every living descendant of `pid`, parents before children."""
    children = children_by_parent()
    found: list[int] = []
    waiting = list(children.get(pid, ()))
    while waiting:
        each = waiting.pop()
        found.append(each)
        waiting.extend(children.get(each, ()))
    return found


def kill_tree(pid: int) -> None:
    """SIGKILL `pid` and every descendant; what is gone already is passed over."""
    below = descendants(pid)
    for each in (pid, *below):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def resident_bytes(pid: int) -> int:
    """Return the proportional resident memory of `pid` and its descendants, 0 when it is gone."""
    return sum(_proportional_bytes(each) for each in (pid, *descendants(pid)))


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
