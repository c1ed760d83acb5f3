"""The application under any ASGI server, without our own wire: routes, WebSockets, interruption, disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from stoker.clock import Clock
from stoker.config.settings import ServerSettings
from stoker.fleet.ports import Endpoint
from stoker.gateway.app import Gateway, build_app
from stoker.gateway.auth import Keyring
from stoker.gateway.interruption import DeadlineWatch, Interruption
from stoker.gateway.metrics import GatewayMetrics
from stoker.testing.clock import VirtualClock, settle
from stoker.testing.gateway import FakeLeases, FakeReplica, StaticDirectory, deployment_facts
from stoker.testing.ledger import MemoryLedger


class Browser:
    """One ASGI connection in memory; `leave` disconnects it."""

    def __init__(self, app: Gateway) -> None:
        self.app = app
        self.sent: list[dict[str, Any]] = []
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def ask(self, path: str, body: bytes = b"", *, kind: str = "http", headers: Any = ()) -> None:
        self._inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})
        scope = {
            "type": kind,
            "method": "POST" if body else "GET",
            "path": path,
            "headers": [(b"host", b"localhost"), *headers],
        }

        async def send(message: Any) -> None:
            self.sent.append(message)

        await self.app(scope, self._inbox.get, send)

    def json(self) -> Any:
        return json.loads(b"".join(m["body"] for m in self.sent if m["type"] == "http.response.body"))


CHAT = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "hi"}]}).encode()


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def leases() -> FakeLeases:
    return FakeLeases({"chat": [FakeReplica("chat-0", Endpoint(socket_path="/tmp/none.sock"))]})


@pytest.fixture
def admin_calls() -> list[str]:
    return []


@pytest.fixture
def app(ledger: MemoryLedger, leases: FakeLeases, admin_calls: list[str]) -> Gateway:
    async def admin(scope: Any, receive: Any, send: Any) -> None:
        admin_calls.append(scope["path"])

    clock: Clock = VirtualClock()
    return build_app(
        leases=leases,
        directory=StaticDirectory([deployment_facts("chat")]),
        recorder=ledger,
        keyring=Keyring(ledger, is_loopback=True),
        clock=clock,
        settings=ServerSettings(),
        metrics=GatewayMetrics(),
        admin=admin,
        why_not_ready=lambda: "still loading",
    )


async def test_a_client_that_leaves_is_noticed_without_our_wire(
    app: Gateway, ledger: MemoryLedger, leases: FakeLeases
) -> None:
    leases.is_closed = True
    browser = Browser(app)
    asking = asyncio.create_task(browser.ask("/v1/chat/completions", CHAT))
    await settle()
    assert leases.num_waiting
    browser.leave()
    await asking
    await ledger.flush()
    [row] = ledger.settlements.values()
    assert (row.outcome, row.status, leases.num_waiting) == ("disconnected", 499, 0)
    assert not browser.sent


async def test_somebody_elses_cancellation_is_never_swallowed_and_the_call_is_settled(
    app: Gateway, ledger: MemoryLedger, leases: FakeLeases
) -> None:
    leases.is_closed = True
    asking = asyncio.create_task(Browser(app).ask("/v1/chat/completions", CHAT))
    await settle()
    assert leases.num_waiting
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await ledger.flush()
    assert [row.outcome for row in ledger.settlements.values()] == ["interrupted"]


async def test_a_bug_becomes_a_500_without_details_and_a_settled_row(
    app: Gateway, ledger: MemoryLedger, leases: FakeLeases
) -> None:
    def explode(*_: Any) -> Any:
        raise ZeroDivisionError("secret")

    leases._grant = explode  # type: ignore[method-assign]
    browser = Browser(app)
    await browser.ask("/v1/chat/completions", CHAT)
    assert browser.sent[0]["status"] == 500
    assert "secret" not in json.dumps(browser.json())
    assert [row.error_code for row in ledger.settlements.values()] == ["internal"]


async def test_foreign_websockets_are_closed_and_ours_under_admin_are_handed_on(
    app: Gateway, admin_calls: list[str]
) -> None:
    foreign, elsewhere, ours = Browser(app), Browser(app), Browser(app)
    await foreign.ask("/admin/events", kind="websocket", headers=[(b"origin", b"http://evil.example")])
    await elsewhere.ask("/v1/realtime", kind="websocket")
    await ours.ask("/admin/events", kind="websocket", headers=[(b"origin", b"http://localhost")])
    assert [foreign.sent[0]["type"], elsewhere.sent[0]["type"], ours.sent] == ["websocket.close", "websocket.close", []]
    assert admin_calls == ["/admin/events"]


async def test_readiness_gives_its_reason(app: Gateway) -> None:
    browser = Browser(app)
    await browser.ask("/ready")
    assert (browser.sent[0]["status"], browser.json()["reason"]) == (503, "still loading")


async def test_a_path_that_merely_begins_like_admin_is_not_admins(app: Gateway, admin_calls: list[str]) -> None:
    browser = Browser(app)
    await browser.ask("/administrator")
    assert browser.sent[0]["status"] == 404
    assert not admin_calls


class LeavingWire:
    """A client that leaves when told."""

    def watch(self, callback: Callable[[], None]) -> None:
        self.leave = callback


async def interrupted(how: Callable[[Interruption, LeavingWire], None], *, timeout_s: float = 600.0) -> object:
    interruption, wire = Interruption(DeadlineWatch()), LeavingWire()

    async def work() -> object:
        interruption.arm(wire, None, timeout_s=timeout_s)  # type: ignore[arg-type]
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            reason = interruption.take()
            if reason is None:
                raise
            await asyncio.sleep(0)  # the task is fit for further waits
            return reason

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    how(interruption, wire)
    return await task


async def test_an_interruption_has_a_reason_and_leaves_the_task_fit() -> None:
    assert await interrupted(lambda _, wire: wire.leave()) == "disconnected"
    assert await interrupted(lambda one, _: one.expire()) == "timed_out"
    assert await interrupted(lambda one, wire: (one.expire(), wire.leave())) == "timed_out"  # type: ignore[func-returns-value]
    assert await interrupted(lambda _, __: None, timeout_s=0.0) == "timed_out"


async def test_a_disarmed_interruption_does_nothing() -> None:
    interruption, wire = Interruption(DeadlineWatch()), LeavingWire()
    interruption.arm(wire, None, timeout_s=600.0)  # type: ignore[arg-type]
    interruption.disarm()
    wire.leave()
    interruption.expire()
    await asyncio.sleep(0)
    assert interruption.take() is None


async def test_the_shared_watch_expires_what_is_due_and_forgets_what_is_done() -> None:
    watch = DeadlineWatch()
    due, later, done = (Interruption(watch) for _ in range(3))
    tasks = []
    for one, timeout_s in ((due, 31.0), (later, 90.0), (done, 31.0)):

        async def work(one: Interruption = one, timeout_s: float = timeout_s) -> str | None:
            one.arm(LeavingWire(), None, timeout_s=timeout_s)  # type: ignore[arg-type]
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return one.take()
            return None

        tasks.append(asyncio.create_task(work()))
    await asyncio.sleep(0)
    done.disarm()
    loop = asyncio.get_running_loop()
    watch._due_s = {one: due_s - 60.0 for one, due_s in watch._due_s.items()}
    watch._look(loop)
    assert await tasks[0] == "timed_out"
    assert not tasks[1].done()
    assert not tasks[2].done()
    for task in tasks[1:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
