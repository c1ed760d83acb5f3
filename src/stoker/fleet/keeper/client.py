"""The server's side of the keeper: connects to a living one or starts one. Touches a socket and starts a process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
from asyncio import Future, StreamReader, StreamWriter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stoker.errors import EngineFailed, KeeperUnavailable, StokerError
from stoker.fleet.keeper import protocol
from stoker.fleet.ports import Endpoint, EngineExit, ExitListener, HeldEngine, LaunchSpec

_SOURCE_ROOT = str(Path(__file__).resolve().parents[3])
_CALL_LIMIT_S = 10.0
_START_LIMIT_S = 15.0
_CONNECT_EVERY_S = 0.005
_RIVAL_LIMIT_S = 1.0
"""A server that was killed a moment ago may still look alive to the keeper."""

_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from stoker.fleet.keeper.__main__ import main; sys.exit(main())"
"""`python -m stoker.fleet.keeper` without `site`: the keeper needs no packages, and starts 30 ms sooner."""


class _Taken(KeeperUnavailable):
    """Another living server has this keeper."""


class KeeperClient:
    """`Keeper` over a UNIX socket; made by `connect_or_spawn`."""

    def __init__(self, reader: StreamReader, writer: StreamWriter, process: subprocess.Popen[bytes] | None) -> None:
        self._reader = reader
        self._writer = writer
        self._process = process
        self._numbers = itertools.count(1)
        self._pending: dict[int, Future[dict[str, Any]]] = {}
        self._listener: ExitListener | None = None
        self._early_exits: list[EngineExit] = []
        self._lost: str | None = None
        self._is_closing = False
        self._reading = asyncio.create_task(self._read(), name="keeper-client")

    def listen(self, listener: ExitListener) -> None:
        """Report to `listener` from now on, beginning with the exits that nobody has heard of."""
        self._listener = listener
        for exited in self._early_exits:
            self._deliver(exited, listener)
        self._early_exits.clear()
        if self._lost is not None:
            listener.on_keeper_lost(self._lost)

    async def launch(self, spec: LaunchSpec) -> int:
        described = {**asdict(spec), "env": dict(spec.env), "notes": dict(spec.notes)}
        return int((await self._call("launch", spec=described))["pid"])

    async def mark_ready(self, replica_id: str, *, is_ready: bool) -> None:
        await self._call("mark_ready", replica_id=replica_id, is_ready=is_ready)

    async def terminate(self, replica_id: str) -> None:
        await self._call("terminate", replica_id=replica_id)

    async def kill(self, replica_id: str) -> None:
        await self._call("kill", replica_id=replica_id)

    async def held(self) -> tuple[HeldEngine, ...]:
        engines = (await self._call("held"))["engines"]
        return tuple(HeldEngine(**{**each, "endpoint": Endpoint(**each["endpoint"])}) for each in engines)

    async def shutdown(self) -> None:
        """End every engine and the keeper, and wait until it has gone."""
        self._is_closing = True
        with contextlib.suppress(KeeperUnavailable):
            await self._call("shutdown")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reading), _CALL_LIMIT_S)
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, _CALL_LIMIT_S)
        await self.close()

    async def close(self) -> None:
        """Let go of the keeper, which then waits for the next server."""
        self._is_closing = True
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        self._writer.close()

    async def hello(self, generation: str, orphan_grace_s: float) -> None:
        """Take over as this keeper's server.

        Raises:
            KeeperUnavailable: it has another server, or speaks another version.
        """
        await self._call("hello", version=protocol.VERSION, generation=generation, orphan_grace_s=orphan_grace_s)

    async def _call(self, operation: str, **fields: Any) -> dict[str, Any]:
        if self._lost is not None:
            raise KeeperUnavailable(self._lost)
        number = next(self._numbers)
        answered: Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[number] = answered
        try:
            self._writer.write(protocol.encode({"id": number, "op": operation, **fields}))
            return await asyncio.wait_for(answered, _CALL_LIMIT_S)
        except TimeoutError as error:
            raise KeeperUnavailable(f"the keeper did not answer {operation} within {_CALL_LIMIT_S:.0f} s") from error
        finally:
            self._pending.pop(number, None)

    async def _read(self) -> None:
        detail = "the keeper closed its connection"
        try:
            while line := await self._reader.readline():
                self._take(protocol.decode(line))
        except (OSError, ValueError, protocol.ProtocolError) as error:
            detail = f"the connection to the keeper broke: {error}"
        self._lose(detail)

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("event") == "exit":
            exited = EngineExit(message["replica_id"], message["exit_code"], message["signal"], message["last_words"])
            if self._listener is None:
                self._early_exits.append(exited)
            else:
                self._deliver(exited, self._listener)
            return
        answered = self._pending.get(message.get("id", 0))
        if answered is None or answered.done():
            return
        if error := message.get("error"):
            kinds: dict[str, type[StokerError]] = {EngineFailed.code: EngineFailed, "taken": _Taken}
            answered.set_exception(kinds.get(error["code"], KeeperUnavailable)(error["message"]))
        else:
            answered.set_result(message["result"])

    def _deliver(self, exited: EngineExit, listener: ExitListener) -> None:
        listener.on_engine_exit(exited)
        # Nobody waits for the answer.
        self._writer.write(protocol.encode({"id": 0, "op": "heard", "replica_id": exited.replica_id}))

    def _lose(self, detail: str) -> None:
        self._lost = detail
        if self._process is not None:
            self._process.poll()  # Reap it, when it was our child.
        for answered in self._pending.values():
            if not answered.done():
                answered.set_exception(KeeperUnavailable(detail))
        if self._listener is not None and not self._is_closing:
            self._listener.on_keeper_lost(detail)


async def connect_or_spawn(run_dir: Path, log_dir: Path, *, generation: str, orphan_grace_s: float) -> KeeperClient:
    """Return a client of the keeper that lives in `run_dir`, starting one when there is none.

    Args:
        generation: names this run of the server.
        orphan_grace_s: how long ready engines are held, in seconds, after this server has gone.

    Raises:
        KeeperUnavailable: it cannot be started, or another server has it.
    """
    path = run_dir / "keeper.sock"
    process: subprocess.Popen[bytes] | None = None
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + _START_LIMIT_S
    rival_until_s = loop.time() + _RIVAL_LIMIT_S
    try:
        while True:
            try:
                return await _greet(path, process, generation, orphan_grace_s)
            except _Taken:
                if loop.time() > rival_until_s:
                    raise
            except (OSError, KeeperUnavailable) as problem:
                # Nobody listens, or a keeper that is ending: the next one waits for its lock.
                if loop.time() > deadline_s or (process is not None and process.poll() not in {None, 0}):
                    raise KeeperUnavailable(
                        f"the keeper cannot be started: {problem}", mend=f"see {log_dir / 'keeper.log'}"
                    ) from problem
                if process is None or process.poll() is not None:
                    process = _spawn(path, log_dir)
            await asyncio.sleep(_CONNECT_EVERY_S)
    except BaseException:
        if process is not None:
            # Nobody will greet it now; it would wait for that.
            process.terminate()
        raise


def _spawn(path: Path, log_dir: Path) -> subprocess.Popen[bytes]:
    with (log_dir / "keeper.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, _SOURCE_ROOT, "--socket", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            # Its own session: a terminal's Ctrl-C and hang-up are the server's business.
            start_new_session=True,
        )


async def _greet(
    path: Path, process: subprocess.Popen[bytes] | None, generation: str, orphan_grace_s: float
) -> KeeperClient:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=protocol.MAX_LINE_BYTES)
    client = KeeperClient(reader, writer, process)
    try:
        await client.hello(generation, orphan_grace_s)
    except BaseException:
        await client.close()
        raise
    return client
