"""Runs one command and ends its whole process tree with it, or with the keeper. Run as a script; forks, signals.

An engine that starts processes of its own (in other groups and sessions, too) is started under this shim. It is a
child subreaper, so nothing below it can escape it by forking twice; when the command ends, or the keeper dies, it
kills every descendant. When the shim itself is killed its descendants fall to the keeper, which kills them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType

# A script's own folder is on the path, and would offer this package's modules as top-level ones.
sys.path[0] = str(Path(__file__).resolve().parents[3])

from stoker.fleet.keeper.process_tree import become_subreaper, descendants, die_with_parent  # noqa: E402

_KEEPER_DIED = signal.SIGUSR1
_MAX_SWEEPS = 100
"""A tree that forks faster than it can be read would otherwise keep us here for ever."""


def under_shim(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command that runs `argv` under a shim."""
    return (sys.executable, "-E", "-S", __file__, *argv)


def main(argv: list[str]) -> int:
    """Run `argv` and return what a shell would: its exit code, or 128 + the signal that ended it."""
    keeper = os.getppid()
    become_subreaper()
    signal.signal(_KEEPER_DIED, _end_with_the_keeper)
    # The command is in our group and gets the group's SIGTERM itself; we stay until it has ended.
    signal.signal(signal.SIGTERM, lambda *_: None)
    die_with_parent(_KEEPER_DIED)
    if os.getppid() != keeper:
        return 1
    command = os.fork()
    if command == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(_KEEPER_DIED, signal.SIG_DFL)
        # Should keeper and shim be killed in one instant, the command at least goes with them.
        die_with_parent()
        try:
            os.execvp(argv[0], argv)  # noqa: S606 - no shell is what we want
        except OSError as error:
            os.write(2, f"{argv[0]} cannot be run: {error.strerror}\n".encode())
            os._exit(127)
    while True:
        pid, status = os.wait()
        if pid == command:
            break
    _kill_descendants()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _end_with_the_keeper(_number: int, _frame: FrameType | None) -> None:
    _kill_descendants()
    os._exit(1)


def _kill_descendants() -> None:
    for _ in range(_MAX_SWEEPS):
        left = descendants(os.getpid())
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
