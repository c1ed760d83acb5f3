"""A real keeper in a short temporary directory, and the means to see what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from stoker.fleet.keeper.client import KeeperClient, connect_or_spawn
from stoker.fleet.keeper.shim import under_shim
from stoker.fleet.ports import Endpoint, EngineExit, LaunchSpec

PATIENCE_S = 15.0
_DEEP = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(2):  # twice, so that nothing between it and the engine is left
    if os.fork():
        os._exit(0)
    os.setsid()
time.sleep(600)
"""


class Heard:
    """An exit listener that remembers, and lets a test wait."""

    def __init__(self) -> None:
        self.exits: list[EngineExit] = []
        self.lost: list[str] = []

    def on_engine_exit(self, exited: EngineExit) -> None:
        self.exits.append(exited)

    def on_keeper_lost(self, detail: str) -> None:
        self.lost.append(detail)


class Place:
    """One run directory with the clients that were opened on it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="stk-"))
        self.clients: list[KeeperClient] = []

    @property
    def socket_path(self) -> Path:
        return self.folder / "keeper.sock"

    async def connect(self, generation: str = "gen-1", *, orphan_grace_s: float = 30.0) -> tuple[KeeperClient, Heard]:
        client = await connect_or_spawn(self.folder, self.folder, generation=generation, orphan_grace_s=orphan_grace_s)
        self.clients.append(client)
        heard = Heard()
        client.listen(heard)
        return client, heard

    def spec(self, replica_id: str, *argv: str, is_shimmed: bool = False, log: str | None = None) -> LaunchSpec:
        return LaunchSpec(
            replica_id=replica_id,
            argv=under_shim(argv) if is_shimmed else argv,
            env={"PATH": os.environ["PATH"], "PLACE": str(self.folder)},
            cwd="/",
            log_path=log or str(self.folder / f"{replica_id}.log"),
            endpoint=Endpoint(socket_path=str(self.folder / f"{replica_id}.sock")),
            notes={"deployment": "d"},
        )

    def family(self, replica_id: str, *, is_shimmed: bool = False) -> LaunchSpec:
        """An engine that ignores SIGTERM, with a child, and a descendant that left tree, group and session."""
        script = f"trap '' TERM; {sys.executable} -c \"$DEEP\"; sleep 601 & echo up; while true; do sleep 602; done"
        spec = self.spec(replica_id, "/bin/sh", "-c", script, is_shimmed=is_shimmed)
        return LaunchSpec(**{**{n: getattr(spec, n) for n in spec.__slots__}, "env": {**spec.env, "DEEP": _DEEP}})

    def engines(self) -> dict[int, str]:
        """Every living process that was started as an engine here, by its environment."""
        others = ("keeper.sock", "connect_or_spawn")  # keepers, and the processes that play a server
        return {pid: words for pid, words in self._living().items() if not any(word in words for word in others)}

    def keepers(self) -> dict[int, str]:
        return {pid: words for pid, words in self._living().items() if "keeper.sock" in words}

    def _living(self) -> dict[int, str]:
        mark = str(self.folder).encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                if mark not in words and mark not in (entry / "environ").read_bytes():
                    continue
                if (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found[int(entry.name)] = words.replace(b"\0", b" ").decode(errors="replace")
        return found

    async def clear_up(self) -> None:
        for client in self.clients:
            await client.close()
        for pid in {**self.keepers(), **self.engines()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    place = Place()
    yield place
    await place.clear_up()


async def until(is_so: Callable[[], object], *, what: str = "") -> None:
    """Wait until `is_so`, checking every few milliseconds; fail after `PATIENCE_S`."""
    give_up_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < give_up_s, what or "it never came to be"
        await asyncio.sleep(0.01)


def server_process(place: Place, *, orphan_grace_s: float, replica_id: str, is_ready: bool) -> subprocess.Popen[str]:
    """Another process that plays the server, and says `up` when its engine runs; it is there to be killed."""
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from pathlib import Path
from stoker.fleet.keeper.client import connect_or_spawn
from tests.integration.keeper.conftest import Place
async def main():
    place = Place.__new__(Place)
    place.folder = Path({str(place.folder)!r})
    keeper = await connect_or_spawn(place.folder, place.folder, generation="g", orphan_grace_s={orphan_grace_s})
    await keeper.launch(place.family({replica_id!r}, is_shimmed=True))
    if {is_ready}:
        await keeper.mark_ready({replica_id!r}, is_ready=True)
    print("up", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
