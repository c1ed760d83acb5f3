"""Opens, migrates and verifies the SQLite file. Touches the disk."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from stoker.errors import LedgerUnavailable, StateDirUnusable
from stoker.ledger.migrations import HEAD

BUSY_TIMEOUT_S = 5.0
_MENDS = {
    "SQLITE_FULL": "free some space on its disk; recording goes on by itself",
    "SQLITE_BUSY": "another program holds a lock on the file; end it",
    "SQLITE_READONLY": "make the state directory writable for this user",
    "SQLITE_PERM": "make the state directory writable for this user",
    "SQLITE_CANTOPEN": "make sure that the state directory exists and is writable",
    "SQLITE_IOERR": "check the disk and its file system; recording goes on by itself once it works",
    "SQLITE_CORRUPT": "the file is damaged: stop Stoker, keep a copy, restore it from a backup",
    "SQLITE_NOTADB": "the file is not a ledger: move it away, or choose another state directory",
}


def mend_for(error: BaseException) -> str:
    """Return what a person can do about a database error."""
    name = getattr(error, "sqlite_errorname", "")
    return next((mend for prefix, mend in _MENDS.items() if name.startswith(prefix)), "look at the server's log")


def unavailable(error: BaseException, path: Path) -> LedgerUnavailable:
    """Translate a database error for whoever waited for a row."""
    return LedgerUnavailable(f"the ledger {path} could not be written: {error}", mend=mend_for(error))


def open_migrated(path: Path) -> sqlite3.Connection:
    """Open the ledger for writing, creating or migrating it first where that is needed.

    Raises:
        StateDirUnusable: the file cannot be created, opened or migrated, or a newer Stoker wrote it.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        revision = _revision(path)
        if revision is not None and revision != HEAD and not _is_older(revision):
            raise StateDirUnusable(
                f"the ledger {path} is of revision {revision}, and this Stoker knows revisions up to {HEAD}",
                mend="start the newer Stoker that wrote it, or choose another state directory",
            )
        if revision != HEAD:
            _migrate(path)
        return open_writer(path)
    except (sqlite3.Error, OSError) as error:
        raise _unusable(error, path) from error


def _unusable(error: Exception, path: Path) -> StateDirUnusable:
    mend = mend_for(error) if isinstance(error, sqlite3.Error) else "make the state directory writable for this user"
    return StateDirUnusable(f"the ledger {path} cannot be opened: {error}", mend=mend)


def open_writer(path: Path) -> sqlite3.Connection:
    """Open a ledger of our own revision, and rely on nothing but what is in the main file.

    Frames that a failed fsync left in the WAL may be readable now and yet absent from the disk; rows written behind
    them would be lost with them at a power cut. So whatever the WAL holds is first moved into the main file, durably,
    and the WAL begun anew.

    Raises:
        sqlite3.Error: the file cannot be read, or the checkpoint did not succeed.
    """
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, cached_statements=256)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # The writer checkpoints between batches, when nobody waits for it.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        is_busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise sqlite3.OperationalError("the write-ahead log is in use and could not be checkpointed")
        connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the ledger for reading only."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)


def _revision(path: Path) -> str | None:
    """Read the revision stamp without SQLAlchemy; None when the file was never migrated."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchall()
        stamp = connection.execute("SELECT version_num FROM alembic_version").fetchone() if tables else None
    finally:
        connection.close()
    return None if stamp is None else str(stamp[0])


def _is_older(revision: str) -> bool:
    return revision.isdigit() and int(revision) < int(HEAD)


def _migrate(path: Path) -> None:
    from stoker.ledger.stores.migrate import migrate  # noqa: PLC0415 — imports Alembic, 0.5 s of CPU

    migrate(path)
