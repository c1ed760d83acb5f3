"""Records in three phases, the disk failing in the second, and prints what happened to each row as JSON.

Run as `python fsync_fault_program.py LEDGER FAULT_FILE` with the shim of `fsync_fault.c` preloaded.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

from stoker.errors import LedgerUnavailable
from stoker.ledger.stores.sqlite import SqliteLedger
from stoker.testing.ledger_rows import a_key, a_settlement, an_intent


async def record(ledger: SqliteLedger, prefix: str) -> dict[str, str]:
    """Begin and settle fifty requests by turns, so that they form several batches; return how each row ended."""
    ends: dict[str, str] = {}

    async def wait(name: str, future: "asyncio.Future[None]") -> None:
        try:
            await future
            ends[name] = "stored"
        except LedgerUnavailable as error:
            ends[name] = str(error)

    for number in range(50):
        request_id = f"{prefix}_{number}"
        intent = ledger.begin(an_intent(request_id))
        if number % 10 == 0:
            await wait(f"i {request_id}", intent)
            await wait(f"s {request_id}", ledger.settle(a_settlement(request_id)))
        else:
            settled = ledger.settle(a_settlement(request_id))
            await asyncio.gather(wait(f"i {request_id}", intent), wait(f"s {request_id}", settled))
    return ends


async def main(path: Path, set_fault: Callable[[], None], clear_fault: Callable[[], None]) -> None:
    ledger = await SqliteLedger.open(path)
    phases = {"before": await record(ledger, "before")}
    set_fault()
    phases["during"] = await record(ledger, "during")
    try:
        await ledger.add_key(a_key())
        key = "stored"
    except LedgerUnavailable as error:
        key = str(error)
    clear_fault()
    phases["after"] = await record(ledger, "after")
    late = {}
    for name in ("during_0", "during_49"):
        try:
            await ledger.settle(a_settlement(name))
            late[name] = "stored"
        except LedgerUnavailable as error:
            late[name] = str(error)
    await ledger.close()
    json.dump({**phases, "key": key, "late": late}, sys.stdout)


fault = Path(sys.argv[2])
asyncio.run(main(Path(sys.argv[1]), fault.touch, fault.unlink))
