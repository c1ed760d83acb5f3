"""Servers, rivals and strangers on the keeper's socket; logs, last words and refused programs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys

import pytest

from stoker.errors import EngineFailed, KeeperUnavailable
from stoker.fleet.keeper.protocol import MAX_LINE_BYTES
from stoker.fleet.keeper.rotating_log import LAST_WORDS_BYTES, MAX_LOG_BYTES
from tests.integration.keeper.conftest import Place, until

pytestmark = pytest.mark.timeout(60)


async def test_a_second_living_server_is_refused_and_starts_no_second_keeper(place: Place) -> None:
    keeper, heard = await place.connect()
    await keeper.launch(place.spec("a", "sleep", "600"))
    with pytest.raises(KeeperUnavailable, match="another server"):
        await place.connect("gen-2")
    assert len(place.keepers()) == 1
    assert [e.replica_id for e in await keeper.held()] == ["a"]
    assert heard.lost == []


async def test_two_keepers_cannot_share_a_run_directory(place: Place) -> None:
    keeper, _ = await place.connect()
    rival = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stoker.fleet.keeper", "--socket", str(place.socket_path),
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await rival.wait() != 0
    assert await keeper.held() == ()
    assert place.socket_path.exists()


async def test_the_socket_of_a_dead_keeper_is_no_obstacle(place: Place) -> None:
    _, heard = await place.connect()
    (pid,) = place.keepers()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: heard.lost)
    assert place.socket_path.exists()
    keeper, _ = await place.connect("gen-2")
    assert await keeper.held() == ()


async def test_the_socket_is_for_its_owner_only(place: Place) -> None:
    await place.connect()
    assert stat.S_IMODE(place.socket_path.stat().st_mode) & 0o077 == 0


async def test_a_keeper_of_another_protocol_makes_room(place: Place) -> None:
    keeper, heard = await place.connect()
    await keeper.launch(place.spec("a", "sleep", "600"))
    await keeper.mark_ready("a", is_ready=True)
    (before,) = place.keepers()
    await keeper.close()
    reader, writer = await asyncio.open_unix_connection(str(place.socket_path))
    writer.write(b'{"id": 1, "op": "hello", "version": 0, "generation": "old", "orphan_grace_s": 1}\n')
    assert "error" in json.loads(await reader.readline())
    writer.close()
    second, _ = await place.connect("gen-2")
    assert await second.held() == ()
    await until(lambda: before not in place.keepers())
    assert place.engines() == {}
    assert heard.lost == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff" * 100 + b"\n",
        b"[1, 2]\n",
        b"[" * 100_000 + b"\n",
        b'{"id": 9}\n',
        b'{"id": 9, "op": "launch", "spec": {"replica_id": "x", "argv": 7}}\n',
        b"x" * (MAX_LINE_BYTES + 2),
    ],
    ids=["http", "binary", "no object", "deep", "no operation", "malformed launch", "oversize"],
)
async def test_garbage_ends_a_connection_and_harms_no_engine(place: Place, garbage: bytes) -> None:
    keeper, heard = await place.connect()
    await keeper.launch(place.spec("a", "sleep", "600"))
    await keeper.mark_ready("a", is_ready=True)
    for as_server in (False, True):
        if as_server:
            await keeper.close()
        reader, writer = await asyncio.open_unix_connection(str(place.socket_path), limit=2**20)
        if as_server:
            hello = {"id": 1, "op": "hello", "version": 1, "generation": "g", "orphan_grace_s": 30}
            writer.write(json.dumps(hello).encode() + b"\n")
            assert "result" in json.loads(await reader.readline())
        writer.write(garbage)
        writer.write_eof()
        while await reader.read(65536):
            pass
        writer.close()
    second, _ = await place.connect("gen-2")
    assert [e.replica_id for e in await second.held()] == ["a"]
    assert heard.exits == []


async def test_half_a_hello_does_not_block_the_next_server(place: Place) -> None:
    keeper, _ = await place.connect()
    await keeper.launch(place.spec("a", "sleep", "600"))
    await keeper.mark_ready("a", is_ready=True)
    await keeper.close()
    _, stuck = await asyncio.open_unix_connection(str(place.socket_path))
    stuck.write(b'{"id": 1,')
    await stuck.drain()
    second, _ = await place.connect("gen-2")
    assert [e.replica_id for e in await second.held()] == ["a"]
    stuck.close()


async def test_an_exit_that_nobody_heard_is_told_to_the_next_server(place: Place) -> None:
    keeper, _ = await place.connect()
    await keeper.launch(place.spec("a", "sleep", "600"))
    pid = await keeper.launch(place.spec("b", "sh", "-c", "echo farewell; exec sleep 600"))
    await keeper.mark_ready("a", is_ready=True)
    await keeper.mark_ready("b", is_ready=True)
    await until(lambda: (place.folder / "b.log").exists() and (place.folder / "b.log").read_text())
    await keeper.close()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: pid not in place.engines())
    second, heard = await place.connect("gen-2")
    assert [e.replica_id for e in await second.held()] == ["a"]
    await until(lambda: heard.exits)
    assert (heard.exits[0].replica_id, heard.exits[0].last_words) == ("b", "farewell\n")


async def test_a_program_that_does_not_exist_is_refused_with_its_name(place: Place) -> None:
    keeper, _ = await place.connect()
    with pytest.raises(EngineFailed, match=r"/no/such/program.*No such file"):
        await keeper.launch(place.spec("a", "/no/such/program"))
    assert await keeper.held() == ()


async def test_a_log_that_cannot_be_written_costs_lines_and_no_engine(place: Place) -> None:
    keeper, heard = await place.connect()
    await keeper.launch(place.spec("a", "sh", "-c", "echo spoken; exit 3", log="/proc/nowhere/a.log"))
    await until(lambda: heard.exits)
    assert (heard.exits[0].exit_code, heard.exits[0].last_words) == (3, "spoken\n")


async def test_a_chatty_engine_is_drained_rotated_and_does_not_starve_the_server(place: Place) -> None:
    keeper, heard = await place.connect()
    script = "import sys\nwhile True: sys.stdout.write('chatter ' * 8191 + '\\n')"
    await keeper.launch(place.spec("a", sys.executable, "-c", script))
    log, older = place.folder / "a.log", place.folder / "a.log.1"
    await until(older.exists)
    async with asyncio.timeout(5):
        assert len(await keeper.held()) == 1
        await keeper.kill("a")
    await until(lambda: heard.exits)
    assert 0 < older.stat().st_size <= MAX_LOG_BYTES
    assert log.stat().st_size <= MAX_LOG_BYTES
    assert 0 < len(heard.exits[0].last_words.encode()) <= LAST_WORDS_BYTES
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


async def test_a_stale_engine_socket_is_removed_before_and_after(place: Place) -> None:
    keeper, heard = await place.connect()
    spec = place.spec("a", "sh", "-c", 'test -e "$PLACE/a.sock" && echo stale; : > "$PLACE/a.sock"; exec sleep 600')
    socket_path = place.folder / "a.sock"
    socket_path.write_text("left behind")
    await keeper.launch(spec)
    await until(lambda: socket_path.exists() and socket_path.read_text() == "")
    await keeper.kill("a")
    await until(lambda: heard.exits)
    assert heard.exits[0].last_words == ""
    assert not socket_path.exists()


async def test_shutdown_ends_engines_and_keeper(place: Place) -> None:
    keeper, heard = await place.connect()
    await keeper.launch(place.family("a", is_shimmed=True))
    await until(lambda: len(place.engines()) >= 4)
    await keeper.shutdown()
    assert place.engines() == place.keepers() == {}
    assert heard.lost == []


async def test_a_connection_that_is_given_up_leaves_no_keeper(place: Place) -> None:
    connecting = asyncio.create_task(place.connect())
    await until(place.keepers)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    await until(lambda: place.keepers() == {})


async def test_an_exit_that_was_heard_is_not_told_again(place: Place) -> None:
    keeper, heard = await place.connect()
    await keeper.launch(place.spec("a", "sleep", "600"))
    await keeper.launch(place.spec("b", "sleep", "600"))
    await keeper.mark_ready("b", is_ready=True)
    await keeper.kill("a")
    await until(lambda: heard.exits)
    await keeper.held()
    await keeper.close()
    second, heard_next = await place.connect("gen-2")
    assert [e.replica_id for e in await second.held()] == ["b"]
    assert heard_next.exits == []
