"""The keeper's core: holds engines for one server at a time and ends what nobody claims. Forks, signals, a socket.

Its life hangs on a server's connection. When that closes, engines that were declared ready are held for the orphan
grace and everything else ends at once; when no server comes back in time, or on SIGTERM, all ends and so does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
from typing import Any

from stoker.fleet.keeper import protocol
from stoker.fleet.keeper.engine_process import CannotRun, Ended, EngineProcess
from stoker.fleet.keeper.process_tree import become_subreaper, children_by_parent, kill_tree, resident_bytes

_END_LIMIT_S = 5.0
_SWEEP_EVERY_S = 0.02
_FIRST_HELLO_S = 30.0
"""A keeper whose server died before it said hello must not stay."""
_MAX_UNHEARD_EXITS = 256


class Refused(Exception):
    """A request cannot be done; `code` is one of `errors`' codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Keeper:
    """Owns every engine of one state directory."""

    def __init__(self) -> None:
        self._engines: dict[str, EngineProcess] = {}
        self._server: asyncio.StreamWriter | None = None
        self._orphan_grace_s = 0.0
        self._dead_man: asyncio.TimerHandle | None = None
        self._is_over = asyncio.Event()
        self._finished: dict[str, Ended] = {}
        self._unheard: dict[str, dict[str, Any]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def run(self, listener: socket.socket) -> None:
        """Serve until the grace ends, a server says `shutdown` or SIGTERM comes; then end every engine."""
        loop = asyncio.get_running_loop()
        become_subreaper()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        loop.add_signal_handler(signal.SIGTERM, self._is_over.set)
        for number in (signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)
        self._dead_man = loop.call_later(_FIRST_HELLO_S, self._is_over.set)
        server = await asyncio.start_unix_server(self._serve, sock=listener, limit=protocol.MAX_LINE_BYTES)
        try:
            await self._is_over.wait()
        finally:
            server.close()
            await self._end_everything()

    # ------------------------------------------------------------------------------------------ conversation

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if _peer_uid(writer) != os.getuid():
                return
            hello = protocol.decode(await reader.readline())
            try:
                self._check(hello)
            except Refused as refused:
                _send(writer, {"id": hello.get("id"), "error": {"code": refused.code, "message": str(refused)}})
                await writer.drain()
                return
            self._take_over(hello, writer)
            while line := await reader.readline():
                self._answer(protocol.decode(line), writer)
                await writer.drain()
        except (OSError, ValueError, protocol.ProtocolError):
            pass  # Garbage, an oversized line or a reset: the same as a server that died.
        finally:
            if self._server is writer:
                self._lose_server()
            writer.close()

    def _check(self, hello: dict[str, Any]) -> None:
        """Refuse whoever cannot be our server."""
        if hello.get("op") != "hello" or not isinstance(hello.get("orphan_grace_s"), int | float):
            raise Refused("bad_request", "the first message must be hello")
        if hello.get("version") != protocol.VERSION:
            # A server of another version cannot use our engines' descriptions: make room for its own keeper.
            self._is_over.set()
            raise Refused("version", f"this keeper speaks version {protocol.VERSION}, not {hello.get('version')}")
        if self._server is not None:
            raise Refused("taken", "another server is connected to the keeper")
        if self._is_over.is_set():
            raise Refused("version", "this keeper is ending")

    def _take_over(self, hello: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self._server = writer
        self._orphan_grace_s = float(hello["orphan_grace_s"])
        if self._dead_man is not None:
            self._dead_man.cancel()
            self._dead_man = None
        _send(writer, {"id": hello["id"], "result": {"pid": os.getpid()}})
        for event in self._unheard.values():
            _send(writer, event)

    def _lose_server(self) -> None:
        self._server = None
        for engine in self._engines.values():
            if not engine.is_ready:
                engine.kill()
        grace_s = self._orphan_grace_s if any(e.is_ready for e in self._engines.values()) else 0.0
        self._dead_man = asyncio.get_running_loop().call_later(grace_s, self._is_over.set)

    def _answer(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        number = message.get("id")
        try:
            result = self._do(message)
        except Refused as refused:
            _send(writer, {"id": number, "error": {"code": refused.code, "message": str(refused)}})
        except (KeyError, TypeError, AttributeError) as error:
            raise protocol.ProtocolError(f"malformed message: {error!r}") from error
        else:
            _send(writer, {"id": number, "result": result})

    def _do(self, message: dict[str, Any]) -> dict[str, Any]:
        match message["op"]:
            case "launch":
                return {"pid": self._launch(message["spec"])}
            case "mark_ready":
                if engine := self._engines.get(message["replica_id"]):
                    engine.is_ready = bool(message["is_ready"])
            case "terminate":
                if engine := self._engines.get(message["replica_id"]):
                    engine.terminate()
            case "kill":
                if engine := self._engines.get(message["replica_id"]):
                    engine.kill()
            case "heard":
                self._unheard.pop(message["replica_id"], None)
            case "held":
                return {"engines": [_describe(engine) for engine in self._engines.values()]}
            case "shutdown":
                self._is_over.set()
            case unknown:
                raise protocol.ProtocolError(f"unknown operation {unknown!r}")
        return {}

    def _launch(self, spec: dict[str, Any]) -> int:
        if running := self._engines.get(spec["replica_id"]):
            return running.pid
        try:
            engine = EngineProcess(spec)
        except CannotRun as error:
            raise Refused("engine_failed", str(error)) from error
        self._engines[spec["replica_id"]] = engine
        return engine.pid

    # ------------------------------------------------------------------------------------------ endings

    def _reap(self) -> None:
        """Collect every process that ended, and see to what they left behind."""
        by_pid = {engine.pid: name for name, engine in self._engines.items()}
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, status = ended
                if name := by_pid.get(pid):
                    self._finished[name] = self._engines.pop(name).finish(status)
        if self._finished and self._sweep is None:
            self._kill_orphans()

    def _kill_orphans(self) -> None:
        """Kill children of ours that are no engine: they came to us because what stood between has died.

        Their own children come to us next, one generation at a time. Engines that ended are reported when nothing of
        them is left, since the memory that the report sets free is held by descendants, too.
        """
        self._sweep = None
        engines = {engine.pid for engine in self._engines.values()}
        orphans = [pid for pid in children_by_parent().get(os.getpid(), ()) if pid not in engines]
        for pid in orphans:
            kill_tree(pid)
        if orphans:
            self._sweep = asyncio.get_running_loop().call_later(_SWEEP_EVERY_S, self._kill_orphans)
            return
        for name, ended in self._finished.items():
            self._report(name, ended)
        self._finished.clear()

    def _report(self, name: str, ended: Ended) -> None:
        event = {
            "event": "exit",
            "replica_id": name,
            "exit_code": ended.exit_code,
            "signal": ended.signal,
            "last_words": ended.last_words,
        }
        # Kept until it is acknowledged: a server that has just died still looks connected.
        self._unheard[name] = event
        while len(self._unheard) > _MAX_UNHEARD_EXITS:
            del self._unheard[next(iter(self._unheard))]
        if self._server is not None:
            _send(self._server, event)

    async def _end_everything(self) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _END_LIMIT_S
        while children := children_by_parent().get(os.getpid(), ()):
            for pid in children:
                kill_tree(pid)
            self._reap()
            if loop.time() > deadline_s:
                break
            await asyncio.sleep(_SWEEP_EVERY_S / 4)
        self._reap()
        if self._server is not None:
            with contextlib.suppress(OSError):
                await self._server.drain()


def _describe(engine: EngineProcess) -> dict[str, Any]:
    spec = engine.description
    return {
        "replica_id": spec["replica_id"],
        "pid": engine.pid,
        "is_ready": engine.is_ready,
        "endpoint": spec["endpoint"],
        "notes": spec["notes"],
        "resident_bytes": resident_bytes(engine.pid),
    }


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return int(uid)


def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    if not writer.is_closing():
        writer.write(protocol.encode(message))
