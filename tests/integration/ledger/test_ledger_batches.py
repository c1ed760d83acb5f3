"""Group commit on a real file: shared commits, back-pressure, one bad row among good ones, locks, closing."""

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from stoker.errors import LedgerUnavailable
from stoker.ledger.domain.reports import UsageQuery
from stoker.ledger.stores import connection
from stoker.ledger.stores.batch import write_batch
from stoker.ledger.stores.connection import open_migrated
from stoker.ledger.stores.sqlite import SqliteLedger
from stoker.ledger.stores.writer import GroupCommitWriter
from stoker.testing.ledger_rows import a_settlement, a_transition, an_intent


async def num_rows(ledger: SqliteLedger) -> int:
    rows = (await ledger.usage(UsageQuery(0, 2**60, ()))).rows
    return rows[0].num_requests if rows else 0


async def hold_writer(ledger: SqliteLedger) -> threading.Event:
    """Occupy the writer's thread until the returned event is set."""
    is_held, may_go_on = threading.Event(), threading.Event()

    def wait(_: sqlite3.Connection) -> None:
        is_held.set()
        may_go_on.wait()

    ledger._writer.put_job(wait)
    await asyncio.to_thread(is_held.wait)
    return may_go_on


async def test_callers_share_commits(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    async with await SqliteLedger.open(path) as ledger:
        may_go_on = await hold_writer(ledger)
        watcher = sqlite3.connect(path)
        (before,) = watcher.execute("PRAGMA data_version").fetchone()
        waiting = [asyncio.ensure_future(ledger.begin(an_intent(f"req_{n}"))) for n in range(64)]
        may_go_on.set()
        await asyncio.gather(*waiting)
        assert await num_rows(ledger) == 64
        # One commit of 64 rows writes few frames; 64 commits would write at least one each for three b-trees.
        assert watcher.execute("PRAGMA data_version").fetchone() != (before,)
        _, frames, _ = watcher.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        watcher.close()
        assert frames < 64


async def test_back_pressure_refuses_intents_but_never_settlements(tmp_path: Path) -> None:
    async with await SqliteLedger.open(tmp_path / "ledger.sqlite3", max_waiting_rows=10) as ledger:
        may_go_on = await hold_writer(ledger)
        begun = [ledger.begin(an_intent(f"req_{n}")) for n in range(10)]
        refused = ledger.begin(an_intent("one_too_many"))
        assert refused.done()
        settled = [ledger.settle(a_settlement(f"req_{n}")) for n in range(10)]
        may_go_on.set()
        with pytest.raises(LedgerUnavailable, match="10 rows wait"):
            await refused
        await asyncio.gather(*begun, *settled)
        await ledger.begin(an_intent("afterwards"))
        assert await num_rows(ledger) == 11


@pytest.mark.parametrize(
    "bad",
    [
        an_intent("bad", arrived_at_us="noon"),
        an_intent("bad", tenant=None),
        an_intent("bad", arrived_at_us=2**70),
        an_intent("bad", tenant="\ud800"),
        an_intent("bad", tenant=object()),
        "not a record",
    ],
    ids=["text for a time", "no tenant", "beyond 64 bits", "lone surrogate", "an object", "another type"],
)
async def test_one_poisoned_row_fails_alone(tmp_path: Path, bad: object) -> None:
    async with await SqliteLedger.open(tmp_path / "ledger.sqlite3") as ledger:
        may_go_on = await hold_writer(ledger)
        good = [ledger.begin(an_intent(f"req_{n}")) for n in range(20)]
        poisoned = ledger.begin(bad)  # type: ignore[arg-type]
        good += [ledger.settle(a_settlement(f"req_{n}")) for n in range(20)]
        good.append(ledger.record(a_transition()))
        may_go_on.set()
        await asyncio.gather(*good)
        with pytest.raises(LedgerUnavailable, match="refused"):
            await poisoned
        assert await num_rows(ledger) == 20


async def test_a_settlement_with_a_bad_attempt_leaves_nothing(tmp_path: Path) -> None:
    async with await SqliteLedger.open(tmp_path / "ledger.sqlite3") as ledger:
        await ledger.begin(an_intent())
        with pytest.raises(LedgerUnavailable):
            await ledger.settle(a_settlement(attempts=(None,)))
        await ledger.settle(a_settlement())
        (row,) = (await ledger.usage(UsageQuery(0, 2**60, ()))).rows
        assert row.outcomes == {"completed": 1}


async def test_a_locked_file_fails_rows_and_recording_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "ledger.sqlite3"
    async with await SqliteLedger.open(path) as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match="locked"):
            await ledger.begin(an_intent("req_1"))
        other.execute("ROLLBACK")
        other.close()
        await ledger.begin(an_intent("req_2"))
        assert await num_rows(ledger) == 1


async def test_closing_writes_what_is_queued_and_later_rows_fail(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    ledger = await SqliteLedger.open(path)
    queued = [ledger.begin(an_intent(f"req_{n}")) for n in range(100)]
    await ledger.close()
    await ledger.close()
    assert all(future.done() and future.exception() is None for future in queued)
    with pytest.raises(LedgerUnavailable, match="closed"):
        await ledger.begin(an_intent("late"))
    with pytest.raises(LedgerUnavailable, match="closed"):
        await ledger.flush()
    async with await SqliteLedger.open(path) as again:
        assert await num_rows(again) == 100


async def pages_in_wal(path: Path, *, checkpoint_after_pages: int) -> int:
    writer = GroupCommitWriter(path, asyncio.get_running_loop(), checkpoint_after_pages=checkpoint_after_pages)
    await writer.start()
    for batch in range(40):
        await asyncio.gather(*(writer.put(an_intent(f"req_{batch}_{n}")) for n in range(100)))
    num_pages = path.with_name(path.name + "-wal").stat().st_size // 4096
    await writer.close()
    return num_pages


async def test_the_write_ahead_log_is_used_again_in_place(tmp_path: Path) -> None:
    recycled = await pages_in_wal(tmp_path / "a", checkpoint_after_pages=50)
    grown = await pages_in_wal(tmp_path / "b", checkpoint_after_pages=10**9)
    assert recycled * 3 < grown


def test_a_batch_that_cannot_commit_leaves_nothing(tmp_path: Path) -> None:
    database = open_migrated(tmp_path / "ledger.sqlite3")
    database.execute("PRAGMA query_only = ON")
    with pytest.raises(sqlite3.OperationalError):
        write_batch(database, [(an_intent(), None)])  # type: ignore[list-item]
    database.close()


def test_the_writer_survives_a_closed_loop(tmp_path: Path) -> None:
    async def start() -> GroupCommitWriter:
        writer = GroupCommitWriter(tmp_path / "ledger.sqlite3", asyncio.get_running_loop())
        await writer.start()
        writer.put(an_intent())
        return writer

    writer = asyncio.run(start())
    with pytest.raises(RuntimeError, match="different loop"):
        asyncio.run(writer.close())
    writer._thread.join(timeout=30)
    assert not writer._thread.is_alive()
