"""One engine process: forked with a parent-death signal, drained, ended with all of its descendants. Forks, signals.

The keeper has one thread, so a plain fork is safe, and the parent-death signal follows the thread that forked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoker.fleet.keeper.process_tree import die_with_parent, kill_tree
from stoker.fleet.keeper.rotating_log import RotatingLog

_READ_BYTES = 64 * 2**10
_MAX_READS_A_TURN = 16
"""An engine that never stops talking must not keep the server's orders waiting."""
_LAST_READS = 256
"""A pipe holds 64 KiB unless somebody enlarged it, up to 1 MiB; source: pipe(7)."""
_OOM_SCORE = b"500"
"""When memory runs out the kernel shall take an engine rather than the server or the keeper; raising needs no right."""


class CannotRun(Exception):
    """The program could not be executed at all; the message says why."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: by `exit_code`, or by `signal`."""

    exit_code: int | None
    signal: int | None
    last_words: str


class EngineProcess:
    """A running engine.

    Args:
        description: what the keeper was told of it, handed on to the next server as it is.

    Raises:
        CannotRun: no such program, not executable, no such directory.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        self.description = description
        self.is_ready = False
        self._log = RotatingLog(description["log_path"])
        self._unlink_socket()
        self._output_fd, output = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(output, True)
        try:
            self.pid = _spawn(description["argv"], description["env"], description["cwd"], output)
        except BaseException:
            os.close(self._output_fd)
            self._log.close()
            raise
        finally:
            os.close(output)
        asyncio.get_running_loop().add_reader(self._output_fd, self._drain)

    def terminate(self) -> None:
        """SIGTERM to the group."""
        self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the group and to every descendant that left it."""
        kill_tree(self.pid)
        self._signal_group(signal.SIGKILL)

    def finish(self, wait_status: int) -> Ended:
        """Take leave of a process that was reaped: kill what is left of its group, read its last words."""
        self._signal_group(signal.SIGKILL)
        self._drain(_LAST_READS)
        asyncio.get_running_loop().remove_reader(self._output_fd)
        os.close(self._output_fd)
        self._log.close()
        self._unlink_socket()
        code = os.waitstatus_to_exitcode(wait_status)
        return Ended(code if code >= 0 else None, -code if code < 0 else None, self._log.last_words)

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _drain(self, max_reads: int = _MAX_READS_A_TURN) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(max_reads):
                content = os.read(self._output_fd, _READ_BYTES)
                if not content:
                    # End of file: nobody holds the other end any more.
                    asyncio.get_running_loop().remove_reader(self._output_fd)
                    return
                self._log.write(content)

    def _unlink_socket(self) -> None:
        if path := self.description["endpoint"].get("socket_path"):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _spawn(argv: Sequence[str], env: Mapping[str, str], cwd: str, output: int) -> int:
    failure, failure_write = os.pipe2(os.O_CLOEXEC)
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            die_with_parent()
            if os.getppid() != keeper:  # It died between the fork and the request above.
                os._exit(1)
            # Ignored signals would stay ignored in the engine.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as score:
                score.write(_OOM_SCORE)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(cwd)
            os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606 - no shell is what we want
        except BaseException as error:
            os.write(failure_write, str(error).encode(errors="replace")[:1000])
        finally:
            os._exit(127)
    os.close(failure_write)
    with os.fdopen(failure, "rb") as pipe:
        words = pipe.read()
    if words:
        os.waitpid(pid, 0)
        raise CannotRun(f"{argv[0]} cannot be run: {words.decode(errors='replace')}")
    return pid
