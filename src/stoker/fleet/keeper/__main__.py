"""`python -m stoker.fleet.keeper --socket PATH` runs the keeper of one state directory. Binds a socket."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import socket
import sys
import time

from stoker.fleet.keeper.keeper import Keeper

EXIT_TAKEN = 75
"""Source: sysexits.h, EX_TEMPFAIL."""
_LOCK_WAIT_S = 6.0
"""A predecessor that is ending its engines gives up after five seconds."""
_LOCK_EVERY_S = 0.01


def main() -> int:
    """Run until told, or until nobody needs it."""
    parser = argparse.ArgumentParser(prog="stoker-keeper", description="Owns the engines of one Stoker.")
    parser.add_argument("--socket", required=True, help="UNIX socket to listen on; an old one is replaced")
    path = parser.parse_args().socket
    os.umask(0o077)
    if not _take_lock(f"{path}.lock"):
        sys.stderr.write(f"another keeper serves {path}\n")
        return EXIT_TAKEN
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Bound beside and moved into place, so that whoever sees the path can connect.
    draft = f"{path}.{os.getpid()}"
    listener.bind(draft)
    listener.listen()
    os.rename(draft, path)
    try:
        asyncio.run(_run(listener))
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return 0


def _take_lock(path: str) -> bool:
    """Hold the lock of this socket until the process ends; the kernel frees it, however that comes about."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up_s = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_s:
                return False
            time.sleep(_LOCK_EVERY_S)
        else:
            return True


async def _run(listener: socket.socket) -> None:
    await Keeper().run(listener)


if __name__ == "__main__":
    sys.exit(main())
