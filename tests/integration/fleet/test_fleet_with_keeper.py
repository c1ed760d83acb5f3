"""The fleet with a real keeper and real engine processes: wake, crash, hand-over, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stoker.clock import SystemClock
from stoker.config.settings import DeploymentSettings
from stoker.errors import EngineFailed
from stoker.events import EventBus, ReplicaMoved
from stoker.fleet.control import NodeBudget
from stoker.fleet.engines.openai_process import OpenAIProcess
from stoker.fleet.fleet import Fleet
from stoker.fleet.keeper.client import KeeperClient, connect_or_spawn
from stoker.fleet.ports import LeaseAsk, LeaseEnd, SlotLease
from stoker.testing.ledger import MemoryLedger

pytestmark = pytest.mark.timeout(60)


class Servers:
    """One server after another on the same run directory."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="stk-"))
        self.ledger = MemoryLedger()
        self.ended = asyncio.Event()
        self.keeper: KeeperClient
        self.fleet: Fleet

    async def start(self, deployments: dict[str, DeploymentSettings], *, generation: str = "gen-1") -> None:
        self.keeper = await connect_or_spawn(self.folder, self.folder, generation=generation, orphan_grace_s=30.0)

        async def no_file(_name: str) -> None:
            return None

        bus = EventBus()
        bus.subscribe(ReplicaMoved, self._note)
        self.fleet = Fleet(
            keeper=self.keeper,
            engines={"openai": OpenAIProcess()},
            recorder=self.ledger,
            clock=SystemClock(),
            bus=bus,
            node=NodeBudget(2**30, 0, 2),
            model_files=no_file,
            run_dir=self.folder,
            log_dir=self.folder,
        )
        await self.fleet.start(deployments)

    def _note(self, moved: ReplicaMoved) -> None:
        if moved.to_status in ("stopped", "failed"):
            self.ended.set()

    async def ask(self, name: str) -> SlotLease:
        return await self.fleet.acquire(LeaseAsk("req", name, "acme", 0, time.monotonic() + 30))

    def pid(self, name: str) -> int:
        found = self.fleet.snapshot().deployment(name)
        assert found is not None
        pid = found.replicas[0].pid
        assert pid is not None
        return pid


def fake(*options: str, **settings: Any) -> DeploymentSettings:
    command = (sys.executable, "-m", "stoker.testing.fake_engine", "--socket", "{socket}", *options)
    source = str(Path(__file__).resolve().parents[3] / "src")
    engine = {"kind": "openai", "command": command, "env": {"PYTHONPATH": source}, "grace": 1}
    return DeploymentSettings(model="m", memory=100 * 2**20, engine=engine, **settings)


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    servers = Servers()
    yield servers
    await servers.fleet.stop()
    await servers.keeper.shutdown()
    shutil.rmtree(servers.folder)


def done(servers: Servers, lease: SlotLease) -> None:
    servers.fleet.release(lease, LeaseEnd(0.1, 1, 1))


async def test_cold_request_wakes_a_process_and_a_killed_one_is_replaced(servers: Servers) -> None:
    await servers.start({"a": fake()})
    lease = await servers.ask("a")
    assert lease.cold_start_s > 0
    assert await lease.engine.health(lease.endpoint) == "ready"
    done(servers, lease)
    first = servers.pid("a")
    servers.ended.clear()
    os.kill(first, signal.SIGKILL)
    await servers.ended.wait()
    again = await servers.ask("a")
    assert again.replica_id != lease.replica_id
    assert servers.pid("a") != first
    done(servers, again)


async def test_callers_of_an_engine_that_dies_at_start_get_its_own_words(servers: Servers) -> None:
    await servers.start({"a": fake("--crash-at-start", "tensor blk.0 is corrupt")})
    answers = await asyncio.gather(*(servers.ask("a") for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in answers] == [EngineFailed] * 3
    assert all("tensor blk.0 is corrupt" in str(each) for each in answers)


async def test_next_server_adopts_the_process_without_a_reload(servers: Servers) -> None:
    deployments = {"own": fake(tier="dedicated")}
    await servers.start(deployments)
    done(servers, await servers.ask("own"))
    pid = servers.pid("own")
    await servers.fleet.detach()
    await servers.keeper.close()
    await servers.start(deployments, generation="gen-2")
    lease = await servers.ask("own")
    assert lease.cold_start_s == 0.0
    assert servers.pid("own") == pid
    done(servers, lease)


async def test_three_cold_deployments_with_room_for_one_all_finish(servers: Servers) -> None:
    big = {"memory": 700 * 2**20}
    await servers.start({name: fake().model_copy(update=big) for name in "abc"})

    async def serve(name: str) -> str:
        lease = await servers.ask(name)
        done(servers, lease)
        return lease.deployment

    assert await asyncio.gather(*(serve(name) for name in "abc")) == ["a", "b", "c"]


async def test_stop_leaves_no_process_even_when_one_ignores_sigterm(servers: Servers) -> None:
    await servers.start({"a": fake("--ignore-sigterm")})
    done(servers, await servers.ask("a"))
    pid = servers.pid("a")
    await servers.fleet.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await servers.ledger.flush()
    assert await servers.ledger.replica_intervals(only_open=True) == []
