"""Records requests without end and writes each acknowledged row's name to standard output.

Run as `python recording_program.py LEDGER`. A line `i <id>` or `s <id>` leaves only after the row's future is done, in
one write to the pipe, so whatever the reader has seen was acknowledged before.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

from stoker.ids import new_request_id
from stoker.ledger.stores.sqlite import SqliteLedger
from stoker.testing.ledger_rows import a_settlement, an_attempt, an_intent

CALLERS = 16


async def call(ledger: SqliteLedger) -> None:
    while True:
        now_us = time.time_ns() // 1000
        request_id = new_request_id(now_us // 1000)
        await ledger.begin(an_intent(request_id, arrived_at_us=now_us))
        os.write(1, f"i {request_id}\n".encode())
        await ledger.settle(a_settlement(request_id, settled_at_us=now_us, attempts=(an_attempt(),)))
        os.write(1, f"s {request_id}\n".encode())


async def main() -> None:
    ledger = await SqliteLedger.open(Path(sys.argv[1]))
    await asyncio.gather(*(call(ledger) for _ in range(CALLERS)))


asyncio.run(main())
