"""A keeper in memory: it starts nothing, records every call, and ends engines when the test says so. Pure."""

from __future__ import annotations

import asyncio
import signal as signals
from dataclasses import dataclass, replace

from stoker.errors import EngineFailed, KeeperUnavailable
from stoker.fleet.ports import EngineExit, ExitListener, HeldEngine, LaunchSpec


@dataclass(frozen=True, slots=True)
class KeeperCall:
    """One call as it arrived: `verb` is the method's name."""

    verb: str
    replica_id: str | None = None
    is_ready: bool | None = None


class FakeKeeper:
    """The `Keeper` port without processes.

    Exits are reported on the next turn of the event loop, as the real keeper reports them after the reply.

    Attributes:
        calls: every call, in order, refused ones included.
        specs: the launch specs by replica, kept after the exit.
        exits_on_terminate: False makes every engine ignore SIGTERM until it is killed.
    """

    def __init__(self, *, exits_on_terminate: bool = True) -> None:
        self.calls: list[KeeperCall] = []
        self.specs: dict[str, LaunchSpec] = {}
        self.exits_on_terminate = exits_on_terminate
        self._engines: dict[str, HeldEngine] = {}
        self._listener: ExitListener | None = None
        self._launch_failures: dict[str, str] = {}
        self._lost: str | None = None
        self._next_pid = 1_000_000

    # -- the port ------------------------------------------------------------------------------------

    def listen(self, listener: ExitListener) -> None:
        self._listener = listener

    async def launch(self, spec: LaunchSpec) -> int:
        self._record(KeeperCall("launch", spec.replica_id))
        if (running := self._engines.get(spec.replica_id)) is not None:
            return running.pid
        if (words := self._launch_failures.pop(spec.replica_id, self._launch_failures.pop("*", None))) is not None:
            raise EngineFailed(words)
        self._next_pid += 1
        self.specs[spec.replica_id] = spec
        self._engines[spec.replica_id] = HeldEngine(
            replica_id=spec.replica_id,
            pid=self._next_pid,
            is_ready=False,
            endpoint=spec.endpoint,
            notes=dict(spec.notes),
            resident_bytes=0,
        )
        return self._next_pid

    async def mark_ready(self, replica_id: str, *, is_ready: bool) -> None:
        self._record(KeeperCall("mark_ready", replica_id, is_ready))
        if (engine := self._engines.get(replica_id)) is not None:
            self._engines[replica_id] = replace(engine, is_ready=is_ready)

    async def terminate(self, replica_id: str) -> None:
        self._record(KeeperCall("terminate", replica_id))
        if self.exits_on_terminate and replica_id in self._engines:
            self.exit_engine(replica_id, signal=signals.SIGTERM)

    async def kill(self, replica_id: str) -> None:
        self._record(KeeperCall("kill", replica_id))
        if replica_id in self._engines:
            self.exit_engine(replica_id, signal=signals.SIGKILL)

    async def held(self) -> tuple[HeldEngine, ...]:
        self._record(KeeperCall("held"))
        return tuple(self._engines.values())

    async def shutdown(self) -> None:
        self._record(KeeperCall("shutdown"))
        self._engines.clear()
        self._lost = "the keeper was shut down"

    # -- what a test does to it ----------------------------------------------------------------------

    @property
    def running(self) -> frozenset[str]:
        """The replicas whose engines run now."""
        return frozenset(self._engines)

    def hold(self, engine: HeldEngine) -> None:
        """Put an engine there that an earlier server left behind."""
        self._engines[engine.replica_id] = engine

    def exit_engine(
        self, replica_id: str, *, exit_code: int | None = None, signal: int | None = None, last_words: str = ""
    ) -> None:
        """End an engine now and report it on the loop's next turn; without code and signal it exits with 1."""
        del self._engines[replica_id]
        if exit_code is None and signal is None:
            exit_code = 1
        exited = EngineExit(replica_id, exit_code, None if signal is None else int(signal), last_words)
        if self._listener is not None:
            asyncio.get_running_loop().call_soon(self._listener.on_engine_exit, exited)

    def set_resident_bytes(self, replica_id: str, resident_bytes: int) -> None:
        """Make an engine this large in later answers of `held`."""
        self._engines[replica_id] = replace(self._engines[replica_id], resident_bytes=resident_bytes)

    def refuse_launch(self, words: str, *, replica_id: str = "*") -> None:
        """Make the next launch (of that replica, or of any) raise `EngineFailed` with these words."""
        self._launch_failures[replica_id] = words

    def lose(self, detail: str = "the keeper died") -> None:
        """Let the keeper die with all of its engines: later calls raise, the listener hears it on the next turn."""
        self._engines.clear()
        self._lost = detail
        if self._listener is not None:
            asyncio.get_running_loop().call_soon(self._listener.on_keeper_lost, detail)

    def _record(self, call: KeeperCall) -> None:
        self.calls.append(call)
        if self._lost is not None:
            raise KeeperUnavailable(self._lost)
