"""A full disk fails rows with a mend, and recording goes on by itself once there is space."""

import asyncio
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stoker.errors import LedgerUnavailable, StateDirUnusable
from stoker.ledger.domain.reports import UsageQuery
from stoker.ledger.statedir import StateDir
from stoker.ledger.stores.sqlite import SqliteLedger
from stoker.testing.ledger_rows import a_settlement, an_intent


async def fill(ledger: SqliteLedger) -> tuple[list[str], list[LedgerUnavailable]]:
    """Record until rows fail; return the requests whose intent was acknowledged, and the errors."""
    stored: list[str] = []
    errors: list[LedgerUnavailable] = []
    while not errors:
        names = [f"req_{len(stored) + n}" for n in range(200)]
        futures = [ledger.begin(an_intent(name, tenant="t" * 500)) for name in names]
        for name, end in zip(names, await asyncio.gather(*futures, return_exceptions=True), strict=True):
            if isinstance(end, LedgerUnavailable):
                errors.append(end)
            else:
                assert end is None
                stored.append(name)
    return stored, errors


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("SKIPPED FAULT TEST: a small disk needs root to mount it")
    at = tmp_path / "small"
    at.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(at)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"SKIPPED FAULT TEST: cannot mount a small disk: {done.stderr.strip()}")
    yield at
    subprocess.run(["umount", "--lazy", str(at)])


async def check_recovered(ledger: SqliteLedger, stored: list[str]) -> None:
    await ledger.begin(an_intent("afterwards"))
    await asyncio.gather(*(ledger.settle(a_settlement(name)) for name in [*stored, "afterwards"]))
    (row,) = (await ledger.usage(UsageQuery(0, 2**60, ()))).rows
    assert row.outcomes == {"completed": len(stored) + 1}


@pytest.mark.root
async def test_a_full_disk_fails_rows_until_there_is_space(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 2**20)
    async with await SqliteLedger.open(small_disk / "ledger.sqlite3") as ledger:
        stored, errors = await fill(ledger)
        assert errors[0].mend is not None
        assert "free some space" in errors[0].mend
        with pytest.raises(LedgerUnavailable):
            await ledger.begin(an_intent("still_full", tenant="t" * 4000))
        ballast.unlink()
        await check_recovered(ledger, stored)


async def test_a_file_that_may_not_grow_fails_rows_until_it_may(tmp_path: Path) -> None:
    async with await SqliteLedger.open(tmp_path / "ledger.sqlite3") as ledger:
        with largest_file(256 * 1024):
            stored, errors = await fill(ledger)
        assert errors[0].mend is not None
        await check_recovered(ledger, stored)


@pytest.mark.root
def test_a_state_directory_on_a_full_disk_is_refused(small_disk: Path) -> None:
    with StateDir.open(small_disk / "state"):
        pass
    (small_disk / "state" / "lock").unlink()
    with pytest.raises(OSError, match="No space"):
        (small_disk / "ballast").write_bytes(b"x" * 2**22)
    with pytest.raises(StateDirUnusable) as caught:
        StateDir.open(small_disk / "state")
    assert "free some space" in str(caught.value)
