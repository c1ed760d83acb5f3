"""The composition root: who plays which part in a server. Touches everything, decides nothing."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import uvloop

from stoker.admin.app import build_admin
from stoker.admin.services import FetchBoard
from stoker.clock import SystemClock
from stoker.config.effective import Change
from stoker.config.loading import Loaded, load
from stoker.config.secrets import resolve_key_secrets
from stoker.config.settings import NodeSettings, ServerSettings
from stoker.config.sources import parse_source
from stoker.errors import NotFound
from stoker.events import EventBus
from stoker.fleet.control import NodeBudget
from stoker.fleet.deployments import Deployments
from stoker.fleet.engines.llama_cpp import LlamaCpp
from stoker.fleet.engines.openai_process import OpenAIProcess
from stoker.fleet.engines.vllm import Vllm
from stoker.fleet.fleet import Fleet
from stoker.fleet.keeper.client import KeeperClient, connect_or_spawn
from stoker.fleet.keeper.watch import KeeperWatch
from stoker.fleet.nodes.local import inspect_node
from stoker.gateway.app import build_app
from stoker.gateway.auth import ConfiguredKey, Keyring
from stoker.gateway.metrics import GatewayMetrics
from stoker.gateway.server import GatewayServer
from stoker.ids import new_generation
from stoker.ledger.statedir import StateDir, default_state_dir
from stoker.ledger.stores.sqlite import SqliteLedger
from stoker.listening import bind, is_loopback, published, stop_signals
from stoker.models.fetching import Progress, ProgressReport
from stoker.models.files import ModelFile
from stoker.models.store import ModelStore, cache_dir

_SWITCH_INTERVAL_S = 0.0005
"""The ledger's writer and the event loop share one interpreter lock; Python's 5 ms would become latency."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `stoker up` was told; None means as configured, or the default."""

    config: Path | None = None
    environment: str | None = None
    host: str | None = None
    port: int | None = None
    state_dir: Path | None = None


class Announcer(Protocol):
    """Tells the person at the terminal; every method returns at once."""

    progress: Progress

    def warn(self, sentence: str) -> None: ...
    def not_applied(self, changes: tuple[Change, ...]) -> None: ...
    def ready(self, url: str, deployments: tuple[str, ...], state_dir: Path) -> None: ...
    def draining(self, timeout_s: float) -> None: ...
    def stopped(self) -> None: ...


def run_server(options: UpOptions, announcer: Announcer) -> None:
    """Serve until a signal: the first drains, the second stops.

    Raises:
        StokerError: the server could not start; nothing of it is left running.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    loaded = load(options.config, environment=options.environment)
    given = {"host": options.host, "port": options.port}
    server = loaded.settings.server.model_copy(update={k: v for k, v in given.items() if v is not None})
    for warning in loaded.warnings:
        announcer.warn(warning)
    uvloop.run(_serve(options, loaded, server, announcer))


async def _serve(options: UpOptions, loaded: Loaded, server: ServerSettings, announcer: Announcer) -> None:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        drain, stop = stack.enter_context(stop_signals())
        state = stack.enter_context(StateDir.open(options.state_dir or default_state_dir(os.environ)))
        keys = await asyncio.to_thread(_configured_keys, loaded)
        ledger = await stack.enter_async_context(await SqliteLedger.open(state.ledger_path))
        keyring = Keyring(ledger, keys, is_loopback=is_loopback(server.host))
        await keyring.refresh()
        sock = bind(server.host, server.port, has_keys=keyring.has_keys)
        stack.callback(sock.close)
        now_us = int(clock.now().timestamp() * 1e6)
        await ledger.settle_interrupted(at_us=now_us)
        # An adopted engine serves as a new replica, so nothing of the last run goes on under its old name.
        await ledger.close_orphan_intervals((), at_us=now_us)

        async def take_up_keys(applied: Loaded) -> None:
            keyring.configure(await asyncio.to_thread(_configured_keys, applied))

        fetches = FetchBoard()
        models = Models(ModelStore(cache_dir(), clock=clock), announcer.progress, fetches)
        fleet = await stack.enter_async_context(_running_fleet(loaded, server, state, ledger, clock, models))
        deployments = Deployments(
            loaded=loaded,
            reload=lambda: load(options.config, environment=options.environment),
            store=ledger,
            fleet=fleet,
            clock=clock,
            model_files=models.ensure,
            on_applied=take_up_keys,
        )
        models.deployments = deployments
        announcer.not_applied(await deployments.restore())
        admin = build_admin(
            deployments=deployments,
            fleet=fleet,
            usage=ledger,
            keys=ledger,
            keyring=keyring,
            models=models.store,
            token=state.admin_token(),
            clock=clock,
            log_dir=state.log_dir,
            fetches=fetches,
        )
        gateway = build_app(
            leases=fleet,
            directory=fleet,
            recorder=ledger,
            keyring=keyring,
            clock=clock,
            settings=server,
            metrics=GatewayMetrics(),
            admin=admin,
        )
        stack.callback(gateway.close)
        http = GatewayServer(gateway, sock, server)
        await fleet.start(deployments.settings.deployments)
        _settle_collector()
        await http.start()
        url = stack.enter_context(published(state.run_dir, sock))
        announcer.ready(url, tuple(deployments.settings.deployments), state.path)
        await drain.wait()
        announcer.draining(server.drain_timeout)
        gateway.drain()
        await _finish(http, fleet, stop, server.drain_timeout)
    announcer.stopped()


def _settle_collector() -> None:
    """Leave what start-up made out of every later collection, and collect the data path's short-lived values seldom.

    The thresholds were chosen by trial on the gateway's whole-answer path: some 10 % less CPU, within the noise.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


async def _finish(http: GatewayServer, fleet: Fleet, stop: asyncio.Event, drain_timeout_s: float) -> None:
    """Let requests in flight end, but no longer than the limit, nor than the second signal."""

    async def drain() -> None:
        await asyncio.gather(http.stop(), fleet.drain(drain_timeout_s))

    draining = asyncio.create_task(drain())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((draining, stopping), return_when=asyncio.FIRST_COMPLETED)
    if stopping.done():
        await http.abort()
    stopping.cancel()
    await draining


@asynccontextmanager
async def _running_fleet(
    loaded: Loaded, server: ServerSettings, state: StateDir, ledger: SqliteLedger, clock: SystemClock, models: Models
) -> AsyncIterator[Fleet]:
    """A fleet with its keeper; both end with the block."""
    keeper: KeeperClient | None = None

    async def connect() -> KeeperClient:
        nonlocal keeper
        keeper = await connect_or_spawn(
            state.run_dir, state.log_dir, generation=new_generation(), orphan_grace_s=server.orphan_grace
        )
        return keeper

    bus = EventBus()
    fleet = Fleet(
        keeper=await connect(),
        engines={adapter.kind: adapter for adapter in (LlamaCpp(), OpenAIProcess(), Vllm())},
        recorder=ledger,
        clock=clock,
        bus=bus,
        node=_budget(loaded.settings.node),
        model_files=models.ensure,
        run_dir=state.run_dir,
        log_dir=state.log_dir,
    )
    watch = KeeperWatch(fleet, connect, clock, bus)
    try:
        yield fleet
    finally:
        await watch.close()
        await fleet.stop()
        if keeper is not None:
            await keeper.shutdown()


class Models:
    """Weights by the name that a deployment gives them.

    Attributes:
        deployments: knows where a model comes from; set once both exist.
    """

    deployments: Deployments

    def __init__(self, store: ModelStore, progress: Progress, fetches: FetchBoard) -> None:
        self.store = store
        self._progress = progress
        self._fetches = fetches

    async def ensure(self, name: str) -> ModelFile | None:
        """Return the verified file, fetched when it is missing; None where the engine has weights of its own."""
        try:
            settings = self.deployments.model_settings(name)
        except NotFound:
            return None
        source = parse_source(settings.source)
        if source.kind == "hf" and not source.path:
            return None
        try:
            return await self.store.ensure(name, settings, progress=self._report)
        finally:
            self._fetches.clear(name)

    def _report(self, report: ProgressReport) -> None:
        self._progress(report)
        self._fetches.note(report)


def _configured_keys(loaded: Loaded) -> tuple[ConfiguredKey, ...]:
    secrets = resolve_key_secrets(loaded.settings.keys)
    return tuple(
        ConfiguredKey(
            name=key.name,
            tenant=key.tenant,
            sha256=key.sha256 or sha256(secrets[key.name].encode()).hexdigest(),
            deployments=key.deployments,
        )
        for key in loaded.settings.keys
    )


def _budget(declared: NodeSettings) -> NodeBudget:
    found = inspect_node()
    return NodeBudget(
        memory_bytes=found.memory_bytes if declared.memory == "auto" else declared.memory,
        memory_reserve_bytes=declared.memory_reserve,
        cores=found.cores if declared.cores == "auto" else declared.cores,
        gpus=declared.gpus,
    )
