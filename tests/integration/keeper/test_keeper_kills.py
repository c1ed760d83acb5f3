"""kill -9 in every order: whatever dies, no descendant is left, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.integration.keeper.conftest import Place, server_process, until

pytestmark = pytest.mark.timeout(60)


SHIMMED = 5  # shim, shell, two sleeps and the one that left
BARE = 4


async def _family_of(place: Place, size: int) -> None:
    await until(lambda: len(place.engines()) == size, what="the family never was complete")


@pytest.mark.parametrize("is_shimmed", [True, False], ids=["under a shim", "bare"])
@pytest.mark.parametrize("is_ready", [True, False], ids=["ready", "starting"])
async def test_a_killed_engine_takes_its_whole_family_along(place: Place, is_shimmed: bool, is_ready: bool) -> None:
    keeper, heard = await place.connect()
    pid = await keeper.launch(place.family("a", is_shimmed=is_shimmed))
    await keeper.mark_ready("a", is_ready=is_ready)
    await _family_of(place, SHIMMED if is_shimmed else BARE)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: heard.exits)
    assert heard.exits[0].signal == signal.SIGKILL
    assert place.engines() == {}, "an exit is reported when everything below the engine is gone"
    assert await keeper.held() == ()


@pytest.mark.parametrize("is_shimmed", [True, False], ids=["under a shim", "bare"])
async def test_kill_reaches_descendants_that_left_tree_and_session(place: Place, is_shimmed: bool) -> None:
    keeper, heard = await place.connect()
    await keeper.launch(place.family("a", is_shimmed=is_shimmed))
    await _family_of(place, SHIMMED if is_shimmed else BARE)
    await keeper.terminate("a")
    await keeper.kill("a")
    await until(lambda: heard.exits)
    assert place.engines() == {}


async def test_killing_one_engine_leaves_the_others_alone(place: Place) -> None:
    keeper, heard = await place.connect()
    await keeper.launch(place.family("a", is_shimmed=True))
    await keeper.launch(place.family("b", is_shimmed=True))
    await _family_of(place, 2 * SHIMMED)
    await keeper.kill("a")
    await until(lambda: heard.exits)
    assert len(place.engines()) == SHIMMED
    assert [e.replica_id for e in await keeper.held()] == ["b"]


@pytest.mark.parametrize("is_ready", [True, False], ids=["ready", "starting"])
async def test_a_killed_keeper_leaves_nothing_and_is_replaced(place: Place, is_ready: bool) -> None:
    keeper, heard = await place.connect()
    await keeper.launch(place.family("a", is_shimmed=True))
    await keeper.mark_ready("a", is_ready=is_ready)
    await _family_of(place, SHIMMED)
    (pid,) = place.keepers()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: heard.lost)
    await until(lambda: place.engines() == {}, what=f"left: {place.engines()}")
    second, _ = await place.connect("gen-2")
    assert await second.held() == ()


async def test_keeper_and_shim_killed_together_leave_no_engine(place: Place) -> None:
    keeper, heard = await place.connect()
    shim = await keeper.launch(place.spec("a", "/bin/sh", "-c", "exec sleep 600", is_shimmed=True))
    await _family_of(place, 2)
    (pid,) = place.keepers()
    os.kill(pid, signal.SIGKILL)
    os.kill(shim, signal.SIGKILL)
    await until(lambda: heard.lost)
    await until(lambda: place.engines() == {}, what=f"left: {place.engines()}")


async def test_sigterm_to_the_keeper_ends_everything_at_once(place: Place) -> None:
    keeper, heard = await place.connect()
    await keeper.launch(place.family("a", is_shimmed=True))
    await keeper.mark_ready("a", is_ready=True)
    await _family_of(place, SHIMMED)
    (pid,) = place.keepers()
    os.kill(pid, signal.SIGTERM)
    await until(lambda: heard.lost)
    await until(lambda: place.engines() == place.keepers() == {})
    assert not place.socket_path.exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP], ids=["Ctrl-C", "hang-up"])
async def test_what_a_terminal_sends_does_not_move_the_keeper(place: Place, signum: signal.Signals) -> None:
    keeper, heard = await place.connect()
    (pid,) = place.keepers()
    assert os.getsid(pid) != os.getsid(0)
    os.kill(pid, signum)
    assert await keeper.held() == ()
    assert heard.lost == []


async def test_a_killed_server_loses_its_starting_engines_and_the_keeper(place: Place) -> None:
    server = server_process(place, orphan_grace_s=60, replica_id="a", is_ready=False)
    await asyncio.to_thread(server.stdout.readline)
    await _family_of(place, SHIMMED)
    server.kill()
    server.wait()
    server.stdout.close()
    await until(lambda: place.engines() == place.keepers() == {}, what="a starting engine outlived its server")


async def test_ready_engines_of_a_killed_server_end_after_the_grace(place: Place) -> None:
    server = server_process(place, orphan_grace_s=0.5, replica_id="a", is_ready=True)
    await asyncio.to_thread(server.stdout.readline)
    await _family_of(place, SHIMMED)
    server.kill()
    server.wait()
    server.stdout.close()
    await until(lambda: place.engines() == place.keepers() == {})
    assert not place.socket_path.exists()


async def test_ready_engines_of_a_killed_server_are_adopted_by_the_next(place: Place) -> None:
    server = server_process(place, orphan_grace_s=30, replica_id="a", is_ready=True)
    await asyncio.to_thread(server.stdout.readline)
    await _family_of(place, SHIMMED)
    before = set(place.engines())
    server.kill()
    server.wait()
    server.stdout.close()
    keeper, _ = await place.connect("gen-2")
    (held,) = await keeper.held()
    assert (held.replica_id, held.is_ready, held.notes) == ("a", True, {"deployment": "d"})
    assert held.pid in before
    assert held.resident_bytes > 0
    assert set(place.engines()) == before


async def test_server_and_keeper_killed_together_leave_nothing(place: Place) -> None:
    server = server_process(place, orphan_grace_s=60, replica_id="a", is_ready=True)
    await asyncio.to_thread(server.stdout.readline)
    await _family_of(place, SHIMMED)
    (pid,) = place.keepers()
    server.kill()
    os.kill(pid, signal.SIGKILL)
    server.wait()
    server.stdout.close()
    await until(lambda: place.engines() == {}, what=f"left: {place.engines()}")
