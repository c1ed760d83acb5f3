"""kill -9 of a recording process loses no acknowledged row."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stoker.ledger.domain.reports import UsageQuery
from stoker.ledger.stores.sqlite import SqliteLedger


@pytest.mark.parametrize("num_rows", [1, 500, 5000])
async def test_kill_9_loses_no_acknowledged_row(
    tmp_path: Path,
    start_recording: Callable[[Path], Any],
    stored_rows: Callable[[Path], set[str]],
    num_rows: int,
) -> None:
    path = tmp_path / "ledger.sqlite3"
    recording = start_recording(path)
    recording.read_until(num_rows)
    recording.process.send_signal(signal.SIGKILL)
    recording.process.wait()
    recording.read_rest()
    assert len(recording.acknowledged) >= num_rows
    assert set(recording.acknowledged) - stored_rows(path) == set()

    async with await SqliteLedger.open(path) as ledger:
        num_interrupted = await ledger.settle_interrupted(at_us=2**60)
        (row,) = (await ledger.usage(UsageQuery(0, 2**60, ()))).rows
    assert row.num_open == 0
    assert row.outcomes.get("interrupted", 0) == num_interrupted
