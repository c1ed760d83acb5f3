"""One suite for every `Keeper`: the real one over its socket, and the one in memory that is shipped for tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from stoker.errors import EngineFailed, KeeperUnavailable
from stoker.fleet.keeper.client import connect_or_spawn
from stoker.fleet.ports import Endpoint, EngineExit, Keeper, LaunchSpec
from stoker.testing.keeper import FakeKeeper

pytestmark = pytest.mark.timeout(60)


class Listener:
    def __init__(self) -> None:
        self.exits: list[EngineExit] = []
        self.lost: list[str] = []

    def on_engine_exit(self, exited: EngineExit) -> None:
        self.exits.append(exited)

    def on_keeper_lost(self, detail: str) -> None:
        self.lost.append(detail)


class Subject:
    """A keeper, and what only the test can do to it."""

    def __init__(self, keeper: Keeper, folder: Path) -> None:
        self.keeper = keeper
        self.folder = folder
        self.heard = Listener()
        keeper.listen(self.heard)

    def spec(self, replica_id: str, program: str = "sleep") -> LaunchSpec:
        return LaunchSpec(
            replica_id, (program, "600"), {"PATH": os.environ["PATH"]}, "/", str(self.folder / f"{replica_id}.log"),
            Endpoint(host="127.0.0.1", port=1), {"deployment": "d"},
        )  # fmt: skip

    async def until(self, is_so: Callable[[], object]) -> None:
        give_up_s = time.monotonic() + 15
        while not is_so():
            assert time.monotonic() < give_up_s
            await asyncio.sleep(0.01)


@pytest.fixture(params=["real", "fake"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="stk-"))
    keeper: Keeper = (
        FakeKeeper()
        if request.param == "fake"
        else await connect_or_spawn(folder, folder, generation="gen-1", orphan_grace_s=5)
    )
    yield Subject(keeper, folder)
    if not isinstance(keeper, FakeKeeper):
        await keeper.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_launched_engine_is_held_and_not_ready(subject: Subject) -> None:
    spec = subject.spec("a")
    pid = await subject.keeper.launch(spec)
    (held,) = await subject.keeper.held()
    assert (held.replica_id, held.pid, held.is_ready) == ("a", pid, False)
    assert (held.endpoint, held.notes) == (spec.endpoint, {"deployment": "d"})


async def test_launching_a_running_replica_again_returns_the_same_process(subject: Subject) -> None:
    assert await subject.keeper.launch(subject.spec("a")) == await subject.keeper.launch(subject.spec("a"))
    assert len(await subject.keeper.held()) == 1


async def test_readiness_can_be_given_and_taken(subject: Subject) -> None:
    await subject.keeper.launch(subject.spec("a"))
    for is_ready in (True, False):
        await subject.keeper.mark_ready("a", is_ready=is_ready)
        assert [e.is_ready for e in await subject.keeper.held()] == [is_ready]


@pytest.mark.parametrize(("verb", "signum"), [("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)])
async def test_an_ended_engine_is_reported_once_with_its_signal(
    subject: Subject, verb: str, signum: signal.Signals
) -> None:
    await subject.keeper.launch(subject.spec("a"))
    await getattr(subject.keeper, verb)("a")
    await subject.until(lambda: subject.heard.exits)
    assert subject.heard.exits == [EngineExit("a", None, signum, "")]
    assert await subject.keeper.held() == ()


async def test_a_replica_can_be_launched_again_after_its_end(subject: Subject) -> None:
    first = await subject.keeper.launch(subject.spec("a"))
    await subject.keeper.kill("a")
    await subject.until(lambda: subject.heard.exits)
    assert await subject.keeper.launch(subject.spec("a")) != first


async def test_orders_for_absent_replicas_do_nothing(subject: Subject) -> None:
    await subject.keeper.terminate("x")
    await subject.keeper.kill("x")
    await subject.keeper.mark_ready("x", is_ready=True)
    assert await subject.keeper.held() == ()
    assert subject.heard.exits == []


async def test_a_program_that_cannot_run_is_an_engine_failure(subject: Subject) -> None:
    if isinstance(subject.keeper, FakeKeeper):
        subject.keeper.refuse_launch("cannot run /no/such/program")
    with pytest.raises(EngineFailed, match="/no/such/program"):
        await subject.keeper.launch(subject.spec("a", "/no/such/program"))
    assert await subject.keeper.held() == ()


async def test_after_shutdown_every_call_says_that_it_is_unavailable(subject: Subject) -> None:
    await subject.keeper.launch(subject.spec("a"))
    await subject.keeper.shutdown()
    with pytest.raises(KeeperUnavailable):
        await subject.keeper.held()
    assert subject.heard.lost == [], "a shutdown that was asked for is no loss"
