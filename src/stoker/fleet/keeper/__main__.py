"""`python -m stoker.fleet.keeper --socket PATH` runs the keeper of one state directory. Binds a socket."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import sys

from stoker.fleet.keeper.keeper import Keeper


def main() -> int:
    """Run until told, or until nobody needs it."""
    parser = argparse.ArgumentParser(prog="stoker-keeper", description="Owns the engines of one Stoker.")
    parser.add_argument("--socket", required=True, help="UNIX socket to listen on; an old one is replaced")
    path = parser.parse_args().socket
    os.umask(0o077)
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


async def _run(listener: socket.socket) -> None:
    await Keeper().run(listener)


if __name__ == "__main__":
    sys.exit(main())
