"""A real gateway on loopback over a scripted engine, with the fleet and the ledger in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from stoker.clock import SystemClock
from stoker.config.settings import ServerSettings
from stoker.fleet.ports import DeploymentFacts
from stoker.gateway.app import Gateway, build_app
from stoker.gateway.auth import ConfiguredKey, Keyring
from stoker.gateway.metrics import GatewayMetrics
from stoker.gateway.server import GatewayServer
from stoker.ledger.records import Settlement
from stoker.testing.gateway import FakeLeases, FakeReplica, PlainEngine, StaticDirectory, deployment_facts
from stoker.testing.ledger import MemoryLedger
from stoker.testing.upstream import Handler, ScriptedUpstream, answer_chat

PRICE = {"input_usd_per_million": "1", "cached_input_usd_per_million": "0.1", "output_usd_per_million": "2"}


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@dataclass
class Answer:
    """One HTTP answer as its bytes said it."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_clean: bool  # the body ended as its framing promised

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json()["error"]

    def events(self) -> list[Any]:
        found = [part.removeprefix(b"data: ") for part in self.body.split(b"\n\n") if part]
        return [part.decode() if part == b"[DONE]" else json.loads(part) for part in found]


class Client:
    """A raw HTTP/1.1 client, so that a test can misbehave."""

    def __init__(self, port: int) -> None:
        self.port = port

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**26)
        try:
            yield reader, writer
        finally:
            writer.close()

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1"]
        fields = {"Host": f"127.0.0.1:{self.port}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        if body:
            fields["Content-Length"] = str(len(body))
        lines += [f"{name}: {value}" for name, value in fields.items() if value]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + body

    async def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        async with self.connect() as (reader, writer):
            writer.write(self.request(method, path, body, **headers))
            return await self.read(reader)

    async def read(self, reader: asyncio.StreamReader) -> Answer:
        return await read_answer(reader)

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.send("GET", path, **headers)

    async def post(self, path: str, document: Any, **headers: str) -> Answer:
        return await self.send("POST", path, json.dumps(document).encode(), **headers)

    async def chat(self, model: str = "chat", *, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        document = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.post("/v1/chat/completions", document, **(headers or {}))

    def chat_request(self, model: str = "chat", **fields: Any) -> bytes:
        document = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
        return self.request("POST", "/v1/chat/completions", json.dumps(document).encode())


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status = int(head.split(" ", 2)[1])
    if status == 100:
        return Answer(100, {}, b"", True)
    headers = {}
    for line in head.split("\r\n")[1:]:
        if line:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
    body = b""
    try:
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(status, headers, body, False)
    return Answer(status, headers, body, True)


@dataclass
class House:
    """Everything around one gateway."""

    client: Client
    upstream: ScriptedUpstream
    leases: FakeLeases
    ledger: MemoryLedger
    keyring: Keyring
    directory: StaticDirectory
    metrics: GatewayMetrics
    server: GatewayServer
    app: Gateway
    engine: PlainEngine
    admin_paths: list[str] = field(default_factory=list)

    async def settled(self, num: int = 1) -> list[Settlement]:
        """Wait until `num` requests are settled; nothing may stay leased then."""
        async with asyncio.timeout(10):
            while len(self.ledger.settlements) < num:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert set(self.ledger.settlements) == set(self.ledger.intents)
        assert self.leases.num_held == 0
        return list(self.ledger.settlements.values())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


OpenHouse = Callable[..., AbstractAsyncContextManager[House]]


@pytest.fixture
def open_house() -> OpenHouse:
    @contextlib.asynccontextmanager
    async def opened(
        handler: Handler = answer_chat,
        *,
        facts: tuple[DeploymentFacts, ...] | None = None,
        keys: tuple[ConfiguredKey, ...] = (),
        engine: PlainEngine | None = None,
        num_replicas: int = 3,
        write_timeout_s: float = 60.0,
        **server: Any,
    ) -> AsyncIterator[House]:
        facts = facts or (deployment_facts("chat", price=PRICE), deployment_facts("chat-large", tenants=("acme",)))
        engine = engine or PlainEngine()
        settings = ServerSettings.model_validate({"drain_timeout": 2, **server})
        admin_paths: list[str] = []

        async def admin(scope: Any, receive: Any, send: Any) -> None:
            admin_paths.append(scope["path"])
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"admin says no"})

        async with ScriptedUpstream(handler) as upstream:
            replicas = {
                one.name: [
                    FakeReplica(f"{one.name}-{n}", upstream.endpoint, engine, one.tier, num_slots=8)
                    for n in range(num_replicas)
                ]
                for one in facts
            }
            leases = FakeLeases(replicas)
            ledger, directory, metrics = MemoryLedger(), StaticDirectory(facts), GatewayMetrics()
            keyring = Keyring(ledger, keys, is_loopback=True)
            app = build_app(
                leases=leases, directory=directory, recorder=ledger, keyring=keyring, clock=SystemClock(),
                settings=settings, metrics=metrics, admin=admin,
            )  # fmt: skip
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
            gateway = GatewayServer(app, sock, settings, write_timeout_s=write_timeout_s)
            await gateway.start()
            try:
                yield House(
                    Client(port), upstream, leases, ledger, keyring, directory, metrics, gateway, app, engine,
                    admin_paths,
                )  # fmt: skip
            finally:
                await gateway.stop()
                app.close()

    return opened
