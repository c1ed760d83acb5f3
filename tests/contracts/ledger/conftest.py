"""Every implementation of the ledger's ports, the shipped fake included."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import pytest

from stoker.ledger.stores.sqlite import SqliteLedger
from stoker.testing.ledger import MemoryLedger

Ledger: TypeAlias = SqliteLedger | MemoryLedger


@pytest.fixture(params=["memory", "sqlite"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = MemoryLedger() if request.param == "memory" else await SqliteLedger.open(tmp_path / "ledger.sqlite3")
    yield opened
    await opened.close()
