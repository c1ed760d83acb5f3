"""One fetch of a source at a time, over tasks and processes. Touches lock files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from stoker.clock import Clock

_POLL_S = 0.2  # a blocking flock could not be cancelled


def try_lock(path: Path) -> int | None:
    """Take the lock and return its descriptor, or None when somebody holds it. Closing the descriptor gives it back.

    The lock file stays: removing it would let two holders lock two files of the same name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@asynccontextmanager
async def locked(path: Path, *, clock: Clock, on_wait: Callable[[], None]) -> AsyncIterator[None]:
    """Hold the lock; while another task or process has it, wait as long as that takes. Cancellable."""
    while (descriptor := try_lock(path)) is None:
        on_wait()
        await clock.sleep(_POLL_S)
    try:
        yield
    finally:
        os.close(descriptor)
