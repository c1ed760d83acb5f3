"""The endpoint's socket, where it is published, and the signals that end a server. Touches sockets, files, signals."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stoker.errors import PortTaken, UnsafeBinding

_SERVER_FILE = "server.json"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def bind(host: str, port: int, *, has_keys: bool) -> socket.socket:
    """Bind the endpoint's socket; 0 takes any free port.

    Raises:
        UnsafeBinding: reachable from elsewhere, and no key exists that would keep strangers out.
        PortTaken: somebody listens there, or the address is not this machine's.
    """
    if not is_loopback(host) and not has_keys:
        raise UnsafeBinding(
            f"{host} can be reached from other machines, and there is no key that would keep strangers out",
            mend="create one while bound to loopback (`stoker keys create NAME`), or name one under `keys:`",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise PortTaken(
            f"cannot listen on {host}:{port}: {error.strerror or error}", mend="choose another with --port or --host"
        ) from error
    sock.setblocking(False)
    return sock


def url_of(sock: socket.socket) -> str:
    """Return how a client on this machine reaches `sock`."""
    host, port = sock.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


@contextmanager
def published(run_dir: Path, sock: socket.socket) -> Iterator[str]:
    """Tell the command line where this server is, for as long as the block lasts; yields the URL."""
    url = url_of(sock)
    path = run_dir / _SERVER_FILE
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({"url": url, "pid": os.getpid()}), encoding="utf-8")
    draft.replace(path)
    try:
        yield url
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def stop_signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Yield two events: the first SIGINT or SIGTERM sets the first, another one the second."""
    loop = asyncio.get_running_loop()
    drain, stop = asyncio.Event(), asyncio.Event()

    def received() -> None:
        (stop if drain.is_set() else drain).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, received)
    try:
        yield drain, stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
