"""The real `stoker up` as the benchmarks start it: pinned, with a key, its state on a real disk. Touches processes and
files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.machine import filesystem_of
from bench.processes import cpu_s, naming, pinned, proportional_memory_bytes
from stoker.config.builtin import BUILTIN_MODELS, DEFAULT_MODEL
from stoker.config.settings import ModelSettings
from stoker.errors import StokerError
from stoker.models.store import ModelStore, cache_dir
from stoker.testing.server import RunningStoker

KEY = "sk-bench-0123456789abcdef0123456789abcdef"
KEY_NAME = "bench"


def _state_directory() -> Path:
    """A fresh directory on a disk: /tmp may be memory, where a durable ledger costs nothing and proves nothing."""
    return Path(tempfile.mkdtemp(prefix="stb-", dir=os.environ.get("STOKER_BENCH_STATE_DIR", "/var/tmp")))


class BenchedStoker:
    """One Stoker with the given deployments and one key.

    Args:
        deployments: as in `stoker.yaml`.
        core: the core that all its processes run on; None means any.
    """

    def __init__(self, deployments: Mapping[str, Any], *, core: int | None = None) -> None:
        self.state_dir = _state_directory()
        declared = {
            "deployments": deployments,
            "keys": [{"name": KEY_NAME, "tenant": "bench", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}],
        }
        self.headers = (f"Authorization: Bearer {KEY}",)
        self._running = RunningStoker(json.dumps(declared), state_dir=self.state_dir, command_prefix=pinned(core))

    @property
    def port(self) -> int:
        return self._running.port

    @property
    def target(self) -> tuple[str, ...]:
        return ("--port", str(self.port))

    def chat(self, deployment: str) -> None:
        """Ask one chat completion, so that whatever it needs is warm.

        Raises:
            RuntimeError: when the answer is not 200.
        """
        body = {"model": deployment, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 1}
        answer = self._running.request("POST", "/v1/chat/completions", body, headers={"Authorization": f"Bearer {KEY}"})
        if answer.status != 200:
            raise RuntimeError(f"{deployment} answered {answer.status}: {answer.body[:500].decode(errors='replace')}")

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        """One call of the admin API; its JSON."""
        return self._running.admin(method, path, body).json()

    def pids(self) -> list[int]:
        """Every process of this Stoker (server, keeper, engines): they name its state directory."""
        return list(naming(str(self.state_dir)))

    def cpu_s(self) -> float:
        """CPU seconds used so far by all of them."""
        return cpu_s(self.pids())

    def facts(self) -> dict[str, Any]:
        """What the report says of the set-up."""
        return {
            # Their command lines would name folders of the machine that measured.
            "processes": sorted(
                "keeper" if "stoker.fleet.keeper" in line else "server" for line in naming(str(self.state_dir)).values()
            ),
            "memory_pss_mib": round(proportional_memory_bytes(self.pids()) / 2**20, 1),
            "state_filesystem": filesystem_of(self.state_dir),
            "auth": "one key, stored hashed",
        }

    def ledger_rows(self) -> dict[str, int]:
        """Settlements by outcome that the ledger holds for the benchmark's key."""
        rows: dict[str, int] = {}
        for path in self.state_dir.rglob("*.sqlite*"):
            if path.suffix not in (".sqlite", ".sqlite3"):
                continue
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as ledger:
                found = ledger.execute(
                    "SELECT s.outcome, count(*) FROM settlements s JOIN requests r USING (request_id) GROUP BY 1"
                )
                for outcome, count in found:
                    rows[outcome] = rows.get(outcome, 0) + count
        return rows

    def __enter__(self) -> BenchedStoker:
        try:
            self._running.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running.process is not None:
            self._running.stop()
        shutil.rmtree(self.state_dir, ignore_errors=True)


def embedded_model_path() -> Path:
    """The verified file of the embedded model in Stoker's own store, fetched when missing.

    Raises:
        RuntimeError: when the store cannot provide it.
    """
    settings = ModelSettings.model_validate(BUILTIN_MODELS[DEFAULT_MODEL])
    try:
        return asyncio.run(ModelStore(cache_dir()).ensure(DEFAULT_MODEL, settings)).path
    except StokerError as error:
        raise RuntimeError(f"the embedded model cannot be had: {error}") from error
