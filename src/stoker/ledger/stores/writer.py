"""The one thread that writes: takes all that is queued, commits it once, and reports back to the event loop.

Touches the SQLite file and a thread. Rows wait in a deque that only the loop's thread fills and only the writer's
thread empties, so neither ever waits for the other.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from stoker.errors import LedgerUnavailable, StokerError
from stoker.ledger.stores.batch import ROW_FAULTS, Item, Record, Refused, write_batch
from stoker.ledger.stores.connection import open_migrated, open_writer, unavailable

_log = logging.getLogger(__name__)

# A commit into a WAL that is used again from its start takes 0.2 ms, into one that grows 0.3; so it is checkpointed
# before it gets long, between batches, or when nothing was written for a while.
CHECKPOINT_AFTER_PAGES = 1000
_CHECKPOINT_WHEN_IDLE_S = 0.25
# What a commit adds to the WAL at least (the right-most leaf of each b-tree it touches), and rows a page beyond that.
_PAGES_PER_COMMIT = 6
_ROWS_PER_PAGE = 6

Job = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True, slots=True)
class _Work:
    """What the writer does between two batches. A barrier does nothing."""

    kind: Literal["open", "job", "barrier", "end"]
    job: Job | None = None


class GroupCommitWriter:
    """Owns the writing connection.

    Every method is called from the event loop's thread, except those of the writer's own thread, which begin with
    `_run`. Futures are completed on the loop, once a batch.

    Args:
        path: the SQLite file; created or migrated by `start`.
        loop: whose futures are completed.
        checkpoint_after_pages: written to the WAL, by estimate, before it is checkpointed between two batches.
    """

    def __init__(
        self, path: Path, loop: AbstractEventLoop, *, checkpoint_after_pages: int = CHECKPOINT_AFTER_PAGES
    ) -> None:
        self._path = path
        self._loop = loop
        self._queue: deque[tuple[Record | _Work, Future[Any]]] = deque()
        self._wake = threading.Lock()
        self._wake.acquire()
        self._is_waiting = False
        self._is_closed = False
        self._connection: sqlite3.Connection | None = None
        self._checkpoint_after_pages = checkpoint_after_pages
        self._num_pages = 0
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)

    @property
    def num_waiting(self) -> int:
        """Rows that are queued and in no batch yet."""
        return len(self._queue)

    async def start(self) -> None:
        """Open the file in the writer's thread.

        Raises:
            StateDirUnusable: as `open_migrated` says.
        """
        opened: Future[None] = self._loop.create_future()
        self._queue.append((_Work("open"), opened))
        self._thread.start()
        try:
            await opened
        except BaseException:
            await self.close()
            raise

    def put(self, record: Record) -> Future[None]:
        """Queue a row; its future is completed when the row is durable or has failed."""
        future: Future[None] = self._loop.create_future()
        self._append(record, future)
        return future

    def put_barrier(self) -> Future[None]:
        """Return a future that is done when everything queued so far is durable or has failed."""
        future: Future[None] = self._loop.create_future()
        self._append(_Work("barrier"), future)
        return future

    def put_job(self, job: Job) -> Future[Any]:
        """Queue a function that runs with the connection after everything queued before it.

        The job opens its own transaction. A `StokerError` that it raises reaches the future as it is.
        """
        future: Future[Any] = self._loop.create_future()
        self._append(_Work("job", job), future)
        return future

    async def close(self) -> None:
        """Write what is queued, then close the file. A second time waits for the first."""
        if not self._is_closed:
            ended: Future[None] = self._loop.create_future()
            self._append(_Work("end"), ended)
            self._is_closed = True
            self._ended = ended
        await self._ended
        self._thread.join()

    def _append(self, work: Record | _Work, future: Future[Any]) -> None:
        if self._is_closed:
            future.set_exception(LedgerUnavailable("the ledger is closed"))
            future.exception()
            return
        self._queue.append((work, future))
        if self._is_waiting:
            self._is_waiting = False
            # Only this thread releases, so a lock seen locked stays so until the next line.
            if self._wake.locked():
                self._wake.release()

    # ------------------------------------------------------------------------------------ the writer's own thread

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch = self._run_take()
            rows: list[Item] = []
            for work, future in batch:
                if type(work) is not _Work:
                    rows.append((cast(Record, work), future))
                    continue
                self._run_rows(rows)
                rows = []
                if work.kind == "end":
                    is_open = False
                self._run_work(work, future)
            self._run_rows(rows)
            if self._num_pages >= self._checkpoint_after_pages:
                self._run_checkpoint()

    def _run_take(self) -> list[tuple[Record | _Work, Future[Any]]]:
        queue = self._queue
        while not queue:
            self._is_waiting = True
            if queue:  # filled since the last look, perhaps without a wake-up
                self._is_waiting = False
                break
            is_awake = self._wake.acquire(timeout=_CHECKPOINT_WHEN_IDLE_S if self._num_pages else -1)
            if not is_awake:
                self._is_waiting = False
                self._run_checkpoint()
        return [queue.popleft() for _ in range(len(queue))]

    def _run_rows(self, rows: Sequence[Item]) -> None:
        if not rows:
            return
        try:
            refused = write_batch(self._run_connection(), rows)
        except Exception as error:
            self._run_distrust(error)
            self._run_report(_fail_all, rows, unavailable(error, self._path))
            return
        self._num_pages += _PAGES_PER_COMMIT + len(rows) // _ROWS_PER_PAGE
        if refused:
            self._run_report(_complete_but, rows, refused)
        else:
            self._run_report(_complete_all, rows)

    def _run_work(self, work: _Work, future: Future[Any]) -> None:
        result = None
        try:
            if work.kind == "open":
                self._connection = open_migrated(self._path)
            elif work.kind == "end":
                self._run_end()
            elif work.job is not None:
                result = work.job(self._run_connection())
                self._num_pages += _PAGES_PER_COMMIT
        except StokerError as error:
            self._run_report(_fail, future, error)
        except ROW_FAULTS as error:
            self._run_report(_fail, future, unavailable(error, self._path))
        except Exception as error:
            self._run_distrust(error)
            self._run_report(_fail, future, unavailable(error, self._path))
        else:
            self._run_report(_complete, future, result)

    def _run_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_writer(self._path)
            _log.warning("ledger.reopened", extra={"path": str(self._path)})
        return self._connection

    def _run_distrust(self, error: Exception) -> None:
        """Roll back and let go of the connection: after an I/O error nothing that it knows is certain."""
        _log.error("ledger.write_failed", extra={"path": str(self._path), "error": str(error)})
        self._num_pages = 0
        self._run_let_go()

    def _run_let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as close_error:
                _log.warning("ledger.close_failed", extra={"error": str(close_error)})

    def _run_checkpoint(self) -> None:
        self._num_pages = 0
        if self._connection is None:
            return
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            self._run_distrust(error)

    def _run_end(self) -> None:
        self._run_checkpoint()
        self._run_let_go()

    def _run_report(self, complete: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(complete, *args)
        except RuntimeError:  # the loop is closed: nobody waits any more
            _log.warning("ledger.outlived_its_loop")


# ---------------------------------------------------------------------------------------------- on the loop


def _complete(future: Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _complete_all(rows: Sequence[Item]) -> None:
    for _, future in rows:
        if not future.done():  # its waiter may have been cancelled
            future.set_result(None)


def _fail(future: Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # logged already, so an unawaited future need not complain again


def _fail_all(rows: Sequence[Item], error: LedgerUnavailable) -> None:
    for _, future in rows:
        _fail(future, LedgerUnavailable(error.message, mend=error.mend))


def _complete_but(rows: Sequence[Item], refused: Sequence[Refused]) -> None:
    for one in refused:
        _log.error("ledger.row_refused", extra={"row": repr(one.item[0]), "error": str(one.fault)})
        _fail(one.item[1], LedgerUnavailable(f"the ledger refused a row: {one.fault}"))
    _complete_all(rows)
