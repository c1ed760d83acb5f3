"""The client side of the data path against hostile and dying engines."""

from __future__ import annotations

import asyncio

import pytest

from stoker.fleet.ports import Endpoint
from stoker.gateway.pool import UpstreamPool
from stoker.gateway.upstream import HIGH_WATER_BYTES, MAX_HEAD_BYTES, UpstreamConnection, UpstreamFailed
from stoker.testing.upstream import ScriptedExchange, ScriptedUpstream


async def read_all(connection: UpstreamConnection) -> bytes:
    body = b""
    while piece := await connection.read():
        body += piece
    return body


async def post(pool: UpstreamPool, upstream: ScriptedUpstream, body: bytes = b"{}") -> UpstreamConnection:
    async with asyncio.timeout(10):
        return await pool.post(upstream.endpoint, "/v1/x", body, is_stream=False)


@pytest.fixture
def pool():
    made = UpstreamPool(connect_timeout_s=1.0)
    yield made
    made.close()


def saying(*parts: bytes, closes: bool = False):
    async def handle(exchange: ScriptedExchange) -> None:
        await exchange.send(*parts)
        if closes:
            exchange.writer.close()

    return handle


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize("is_tcp", [False, True])
async def test_one_connection_is_used_again_and_again(pool, is_tcp: bool):
    async with ScriptedUpstream(saying(OK), is_tcp=is_tcp) as upstream:
        for _ in range(4):
            connection = await post(pool, upstream)
            assert (connection.status, await read_all(connection)) == (200, b"ok")
            connection.finish()
            connection.finish()
        assert upstream.num_connections == 1
        assert b"Content-Length: 2" in upstream.requests[0].head


@pytest.mark.parametrize(
    ("parts", "stage"),
    [
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"], "body", id="a body short of its length"),
        pytest.param(
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"], "body", id="no last chunk"
        ),
        pytest.param([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf"], "body", id="a cut chunk"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Le"], "head", id="a cut head"),
        pytest.param([], "head", id="not a byte"),
    ],
)
async def test_truncated_answers_are_errors(pool, parts, stage):
    async with ScriptedUpstream(saying(*parts, closes=True)) as upstream:
        with pytest.raises(UpstreamFailed) as failed:
            await read_all(await post(pool, upstream))
        assert failed.value.stage == stage


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (MAX_HEAD_BYTES + 10), id="a header without end"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", id="too many headers"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 50, id="interim answers without end"),
        pytest.param(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", id="a protocol switch"),
        pytest.param(b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n", id="a status beyond 599"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", id="a negative length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            id="an overflowing chunk size",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="a chunk size of letters"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * (MAX_HEAD_BYTES * 8), id="a chunk bomb"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"T: 1\r\n" * 200, id="trailers without end"
        ),
    ],
)
async def test_hostile_answers_are_errors_and_their_connections_are_closed(pool, answer: bytes):
    closed = asyncio.Event()

    async def handle(exchange: ScriptedExchange) -> None:
        exchange.writer.write(answer)
        await exchange.wait_closed()
        closed.set()

    async with ScriptedUpstream(handle) as upstream:
        with pytest.raises(UpstreamFailed):
            async with asyncio.timeout(10):
                await read_all(await post(pool, upstream))
        async with asyncio.timeout(10):
            await closed.wait()


async def test_interim_answers_are_skipped(pool):
    early = b"HTTP/1.1 103 Early Hints\r\nContent-Type: x/y\r\nLink: </a>\r\n\r\n"
    async with ScriptedUpstream(saying(b"HTTP/1.1 100 Continue\r\n\r\n", early + OK)) as upstream:
        connection = await post(pool, upstream)
        assert (connection.status, connection.content_type, await read_all(connection)) == (200, None, b"ok")
        connection.finish()
        assert (await post(pool, upstream)).status == 200
        assert upstream.num_connections == 1


@pytest.mark.parametrize("junk", [OK, b"junk", b"HTTP/1.1 200 OK\r\n"])
async def test_whatever_follows_an_answer_is_never_taken_for_the_next(pool, junk: bytes):
    async with ScriptedUpstream(saying(OK + junk)) as upstream:
        for _ in range(2):
            connection = await post(pool, upstream)
            assert await read_all(connection) == b"ok"
            connection.finish()
        assert upstream.num_connections == 2


async def test_an_engine_that_speaks_between_requests_loses_its_connection(pool):
    async with ScriptedUpstream(saying(OK)) as upstream:
        connection = await post(pool, upstream)
        await read_all(connection)
        connection.finish()
        upstream.requests[0].writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        async with asyncio.timeout(5):
            while connection.can_carry:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert await read_all(await post(pool, upstream)) == b"ok"
        assert upstream.num_connections == 2


async def test_a_kept_connection_that_closes_as_the_request_leaves_is_replaced_without_a_word(pool):
    async def handle(exchange: ScriptedExchange) -> None:
        if exchange.number == 2:  # the engine's idle timer fired while the request was on its way
            exchange.abort()
        else:
            await exchange.send(OK)

    async with ScriptedUpstream(handle) as upstream:
        first = await post(pool, upstream)
        await read_all(first)
        first.finish()
        assert await read_all(await post(pool, upstream)) == b"ok"
        assert [len(upstream.requests), upstream.num_connections] == [3, 2]


async def test_a_fresh_connection_that_closes_is_not_tried_again_here(pool):
    async with ScriptedUpstream(saying(closes=True)) as upstream:
        with pytest.raises(UpstreamFailed):
            await post(pool, upstream)
        assert len(upstream.requests) == 1


async def test_a_kept_connection_that_closes_after_the_first_byte_is_not_tried_again(pool):
    async def handle(exchange: ScriptedExchange) -> None:
        await exchange.send(OK if exchange.number == 1 else b"HTTP/1.1 2")
        if exchange.number == 2:
            exchange.writer.close()

    async with ScriptedUpstream(handle) as upstream:
        first = await post(pool, upstream)
        await read_all(first)
        first.finish()
        with pytest.raises(UpstreamFailed):
            await post(pool, upstream)
        assert len(upstream.requests) == 2


async def test_a_body_that_ends_with_the_connection_is_whole(pool):
    async with ScriptedUpstream(saying(b"HTTP/1.0 200 OK\r\n\r\n", b"all of it", closes=True)) as upstream:
        connection = await post(pool, upstream)
        assert await read_all(connection) == b"all of it"
        connection.finish()
        assert not connection.can_carry


async def test_connection_close_is_honoured(pool):
    async with ScriptedUpstream(
        saying(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    ) as upstream:
        for _ in range(2):
            connection = await post(pool, upstream)
            assert await read_all(connection) == b""
            connection.finish()
        assert upstream.num_connections == 2


async def test_an_unread_answer_closes_its_connection_and_so_does_a_cancelled_wait(pool):
    closed = asyncio.Queue[int]()

    async def handle(exchange: ScriptedExchange) -> None:
        if exchange.number == 1:
            await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nbegun")
        await exchange.wait_closed()
        closed.put_nowait(exchange.number)

    async with ScriptedUpstream(handle) as upstream, asyncio.timeout(10):
        connection = await post(pool, upstream)
        connection.finish()
        assert await closed.get() == 1
        waiting = asyncio.create_task(post(pool, upstream))
        while len(upstream.requests) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        waiting.cancel()
        assert await closed.get() == 2


async def test_an_unread_body_is_held_back_at_the_engine(pool):
    total_bytes = 32 * 2**20
    sent_bytes = 0

    async def handle(exchange: ScriptedExchange) -> None:
        nonlocal sent_bytes
        await exchange.send(f"HTTP/1.1 200 OK\r\nContent-Length: {total_bytes}\r\n\r\n".encode())
        for _ in range(total_bytes // 2**16):
            await exchange.send(b"x" * 2**16)
            sent_bytes += 2**16

    async with ScriptedUpstream(handle) as upstream:
        connection = await post(pool, upstream)
        while connection._unread_bytes <= HIGH_WATER_BYTES:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        for _ in range(50):
            await asyncio.sleep(0)
        assert sent_bytes < total_bytes // 4
        received_bytes = 0
        while piece := await connection.read():
            received_bytes += len(piece)
        assert received_bytes == total_bytes
        connection.finish()
        assert connection.can_carry


async def test_a_large_request_body_arrives_whole(pool):
    async with ScriptedUpstream(saying(OK)) as upstream:
        body = bytes(range(256)) * 2**13
        await post(pool, upstream, body)
        assert upstream.requests[0].body == body


@pytest.mark.parametrize(
    "endpoint", [Endpoint(socket_path="/tmp/nobody-here.sock"), Endpoint(host="127.0.0.1", port=1)]
)
async def test_nobody_there_is_a_connect_failure(pool, endpoint: Endpoint):
    with pytest.raises(UpstreamFailed) as failed:
        await pool.post(endpoint, "/", b"", is_stream=False)
    assert failed.value.stage == "connect"


async def test_the_base_path_and_the_port_are_in_the_request(pool):
    async with ScriptedUpstream(saying(OK), is_tcp=True) as upstream:
        there = Endpoint(host="127.0.0.1", port=upstream.endpoint.port, base_path="/base")
        await pool.post(there, "/v1/x", b"{}", is_stream=True)
        assert upstream.requests[0].head.startswith(b"POST /base/v1/x HTTP/1.1\r\n")
        assert f"Host: 127.0.0.1:{there.port}".encode() in upstream.requests[0].head
