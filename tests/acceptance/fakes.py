"""Configurations whose engine is the shipped fake one, and short ways to what the tests of faults look at."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stoker.testing.server import RunningStoker

GENEROUS_S = 20.0


def deployment(name: str, *orders: str, slots: int = 1, start_timeout: str = "30s", **policy: object) -> str:
    """Write one deployment of the fake engine, to stand under `deployments:`.

    Args:
        orders: the fake engine's own options.
        policy: further fields of the deployment.
    """
    command = [sys.executable, "-m", "stoker.testing.fake_engine", "--socket", "{socket}", *orders]
    engine = {"kind": "openai", "slots": slots, "start_timeout": start_timeout, "command": command}
    return f"  {name}: {json.dumps({'model': 'any', 'memory': '64MiB', 'engine': engine, **policy})}\n"


def config(*deployments: str, server: str = "") -> str:
    """Write a whole configuration."""
    return f"server: {{orphan_grace: 1s, {server}}}\nmodels: {{}}\ndeployments:\n{''.join(deployments)}"


def wait_until(is_so: Callable[[], object], *, within_s: float = GENEROUS_S) -> None:
    """Wait for a state that must come; the bound only ends a test that has failed."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def settlements(state_dir: Path) -> list[tuple[str, str]]:
    """Return deployment and outcome of every settled request, oldest first."""
    with sqlite3.connect(f"file:{state_dir}/ledger.sqlite3?mode=ro", uri=True) as database:
        return database.execute("SELECT deployment, outcome FROM settlements NATURAL JOIN requests").fetchall()


def engine_saw(state_dir: Path) -> dict[str, Any]:
    """Return path, headers and body of the last request that reached the only engine of a server."""
    (path,) = [path for path in (state_dir / "run").glob("*.sock") if path.name != "keeper.sock"]
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", "/debug/last")
    seen: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return seen


def exchange(stoker: RunningStoker, *parts: bytes, closes_half: bool = False) -> bytes:
    """Send bytes as they are and return all that comes back before the server closes."""
    with socket.create_connection(("127.0.0.1", stoker.port), timeout=GENEROUS_S) as client:
        for part in parts:
            client.sendall(part)
        if closes_half:
            client.shutdown(socket.SHUT_WR)
        received = b""
        while piece := client.recv(65536):
            received += piece
    return received


def command_line(state_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one `stoker` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "stoker", *arguments],
        env={**os.environ, "STOKER_STATE_DIR": str(state_dir)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
