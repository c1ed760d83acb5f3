"""The state directory: who holds it, and where things lie in it. Touches the disk.

<state dir>/              0700
    lock                  held by flock while a Stoker runs; contains its pid
    admin-token           0600; whoever can read it may administer this Stoker
    ledger.sqlite3        the ledger, with its -wal and -shm
    run/                  sockets
    logs/                 one log a replica
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from stoker.errors import StateDirUnusable

_OWNER_ONLY = 0o700


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return `STOKER_STATE_DIR`, or `stoker` in the XDG state home.

    Source: XDG Base Directory Specification 0.8.
    """
    if named := environ.get("STOKER_STATE_DIR"):
        return Path(named).expanduser()
    home = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "stoker"


def read_admin_token(state_dir: Path) -> str | None:
    """Return the admin token of the Stoker that uses this directory, None when it has never run."""
    try:
        return (state_dir / "admin-token").read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StateDirUnusable(
            f"the admin token of {state_dir} cannot be read: {error}", mend="be the user that Stoker runs as"
        ) from error


class StateDir:
    """A state directory that this process holds until `close`."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd: int | None = lock_fd

    @classmethod
    def open(cls, path: Path) -> Self:
        """Create what is missing, take the lock and write our pid into it.

        Raises:
            StateDirUnusable: another Stoker holds it, or it cannot be written.
        """
        path = path.expanduser().absolute()
        try:
            for directory in (path, path / "run", path / "logs"):
                directory.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
                if directory.stat().st_mode & 0o077:
                    directory.chmod(_OWNER_ONLY)
            lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            _take(path, lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(path, lock_fd)

    @property
    def ledger_path(self) -> Path:
        return self.path / "ledger.sqlite3"

    @property
    def run_dir(self) -> Path:
        return self.path / "run"

    @property
    def log_dir(self) -> Path:
        return self.path / "logs"

    def admin_token(self) -> str:
        """Return the admin token, made at the first call.

        Raises:
            StateDirUnusable: it cannot be read or written.
        """
        if token := read_admin_token(self.path):
            return token
        token = secrets.token_urlsafe(32)
        draft = self.path / "admin-token.new"
        try:
            with suppress(FileNotFoundError):
                draft.unlink()
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(token + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path / "admin-token")
        except OSError as error:
            raise _unusable(self.path, error) from error
        return token

    def close(self) -> None:
        """Let go of the directory; a second time does nothing."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _take(path: Path, lock_fd: int) -> None:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        # The holder writes its pid right after locking, so for an instant the file may be empty.
        holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise StateDirUnusable(
            f"another Stoker, pid {holder}, uses the state directory {path}",
            mend="stop it, or give this one another --state-dir",
        ) from error
    try:
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode("ascii"), 0)
        os.fsync(lock_fd)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> StateDirUnusable:
    return StateDirUnusable(
        f"the state directory {path} cannot be used: {error.strerror or error}",
        mend="free some space and make it writable for this user, or choose another with --state-dir",
    )
