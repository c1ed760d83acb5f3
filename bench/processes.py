"""Child processes of a benchmark: pinned, drained, stopped, and their CPU time counted. Touches processes and /proc."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def pinned(core: int | None) -> tuple[str, ...]:
    """The words that pin a command to one core; none where the machine has one core, or no `taskset`."""
    if core is None or shutil.which("taskset") is None or core not in os.sched_getaffinity(0):
        return ()
    return ("taskset", "-c", str(core))


def dying_with_us() -> tuple[str, ...]:
    """The words that have the kernel kill a command when the benchmark is killed; none where `setpriv` is missing."""
    return ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()


def two_cores() -> tuple[int | None, int | None]:
    """A core for what is measured and another for what measures it; None, None with fewer than two cores."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)


class Child:
    """A child in its own session, its output in a file; leaving the block ends its whole group.

    Args:
        stop_s: between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: Path,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        stop_s: float = 10.0,
    ) -> None:
        self.output = output
        self._stop_s = stop_s
        self.started_s = time.monotonic()
        with output.open("wb") as stream:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(environment) if environment is not None else None,
                cwd=directory,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """The end of what the child printed."""
        return self.output.read_text(errors="replace")[-2000:]

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Signal the group, wait, kill what is left; safe to repeat."""
        for wanted in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, wanted)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self._stop_s)
                return

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def naming(mark: str) -> dict[int, str]:
    """Return pid → command line of every living process with `mark` in its command line or environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if mark.encode() in command or mark.encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def parse_cpu_ticks(stat_line: str) -> int:
    """User plus system time in clock ticks from a /proc/PID/stat line, reaped children included.

    The command's name may hold spaces and parentheses, so fields are counted from the last `)`.

    Source: proc_pid_stat(5), fields 14 to 17.
    """
    fields = stat_line.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15])


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds used so far by the living ones of these processes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += parse_cpu_ticks(Path(f"/proc/{pid}/stat").read_text())
    return total / TICKS_PER_S


def proportional_memory_bytes(pids: Iterable[int]) -> int:
    """Proportional set size of these processes together; those that may not be read count 0."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def core_busy_s(core: int | None) -> float:
    """Seconds that a core (None: all together) was not idle since the machine started, stolen time included.

    Source: proc_stat(5); fields 4 and 5 are idle time and waiting for I/O.
    """
    name = "cpu" if core is None else f"cpu{core}"
    for line in Path("/proc/stat").read_text().splitlines():
        if line.split(" ", 1)[0] == name:
            fields = [int(field) for field in line.split()[1:9]]
            return (sum(fields) - fields[3] - fields[4]) / TICKS_PER_S
    return 0.0
