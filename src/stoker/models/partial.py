"""A download under way: bytes on disk, their running SHA-256, and what is needed to go on later. Touches files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from stoker.errors import ModelUnavailable

KEPT_FREE_BYTES = 64 * 2**20  # what a download leaves on the disk, so that the ledger can still write
_READ_BYTES = 2**20

FreeBytes = Callable[[Path], int]


def free_bytes(directory: Path) -> int:
    """Return what an ordinary user may still write on the disk of `directory`."""
    return shutil.disk_usage(directory).free


def mebibytes(num_bytes: int) -> str:
    """Write a size for people: `93.8 MiB`."""
    return f"{num_bytes / 2**20:.1f} MiB"


@dataclass(frozen=True, slots=True)
class PartState:
    """What is remembered beside a part file.

    Attributes:
        validator: strong ETag of what was being downloaded, None when the server gave none.
        total_bytes: length of the whole, None when unknown.
    """

    source: str
    name: str
    validator: str | None = None
    total_bytes: int | None = None


def notes_path(part_path: Path) -> Path:
    """Return where the state of a part file stands."""
    return part_path.with_name(part_path.name + ".json")


def read_notes(part_path: Path) -> PartState | None:
    """Return what is remembered beside a part file, None when that is lost."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return PartState(**json.loads(notes_path(part_path).read_text()))
    return None


class PartFile:
    """One part file; a single task uses it, under the source's lock.

    Args:
        expected_sha256: when known, a download may be resumed without an ETag: the hash tells in the end.

    Attributes:
        was_resumed: what is there came in more than one answer.
    """

    def __init__(
        self, path: Path, *, source: str, name: str, expected_sha256: str | None, free: FreeBytes = free_bytes
    ) -> None:
        self.path = path
        self.expected_sha256 = expected_sha256
        self.was_resumed = False
        self._free = free
        self._state = PartState(source, name)
        self._notes = notes_path(path)
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that are there."""
        return self._num_bytes

    @property
    def validator(self) -> str | None:
        """ETag to resume with."""
        return self._state.validator

    @property
    def total_bytes(self) -> int | None:
        """Length of the whole, where known."""
        return self._state.total_bytes

    @property
    def can_resume(self) -> bool:
        """Whether what is there may be continued with a range."""
        return self._num_bytes > 0 and bool(self.validator or self.expected_sha256)

    def open(self) -> None:
        """Take up what an earlier run left, hashing it again. Blocking."""
        self.close()
        self._file = self.path.open("ab+")
        kept = read_notes(self.path)
        if kept is not None and kept.source == self._state.source:
            self._state = PartState(kept.source, self._state.name, kept.validator, kept.total_bytes)
        self._hash = hashlib.sha256()
        self._file.seek(0)
        self._num_bytes = 0
        while chunk := self._file.read(_READ_BYTES):
            self._hash.update(chunk)
            self._num_bytes += len(chunk)
        if self._num_bytes and not self.can_resume:
            self._truncate()
        self.was_resumed = self._num_bytes > 0

    def begin(self, *, validator: str | None, total_bytes: int | None, is_continued: bool) -> None:
        """Note what is about to arrive, make room for it, and drop what is there unless it is continued. Blocking.

        Raises:
            ModelUnavailable: the disk has no room, with the arithmetic.
        """
        if not is_continued:
            self._truncate()
        self.was_resumed = is_continued
        self._state = PartState(self._state.source, self._state.name, validator, total_bytes)
        self.require_room(total_bytes)
        self._notes.write_text(json.dumps(asdict(self._state)))

    def require_room(self, total_bytes: int | None) -> None:
        """Raise `ModelUnavailable` unless the rest of `total_bytes` fits on the disk."""
        rest_bytes = max(0, (total_bytes or 0) - self._num_bytes)
        has_bytes = self._free(self.path.parent)
        if rest_bytes + KEPT_FREE_BYTES > has_bytes:
            raise ModelUnavailable(
                f"{self._state.name} does not fit on the disk of {self.path.parent}: {mebibytes(rest_bytes)} to write "
                f"+ {mebibytes(KEPT_FREE_BYTES)} kept free = {mebibytes(rest_bytes + KEPT_FREE_BYTES)}, "
                f"and {mebibytes(has_bytes)} are free",
                mend="remove models with `stoker models rm`, or set STOKER_CACHE_DIR to a larger disk",
            )

    def append(self, chunk: bytes) -> None:
        """Write the next bytes. Blocking.

        Raises:
            ModelUnavailable: the disk is full, or more arrived than was announced.
        """
        assert self._file is not None
        total_bytes = self.total_bytes
        if total_bytes is not None and self._num_bytes + len(chunk) > total_bytes:
            raise ModelUnavailable(f"{self._state.source} sent more than the {total_bytes} bytes that it announced")
        try:
            if total_bytes is None:
                self.require_room(self._num_bytes + len(chunk))
            self._file.write(chunk)
            self._file.flush()
        except OSError as exc:
            if exc.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            with contextlib.suppress(OSError):
                self._file.truncate(self._num_bytes)
            raise ModelUnavailable(
                f"the disk of {self.path.parent} is full after {mebibytes(self._num_bytes)} of {self._state.name}",
                mend="remove models with `stoker models rm`, or set STOKER_CACHE_DIR to a larger disk",
            ) from exc
        self._hash.update(chunk)
        self._num_bytes += len(chunk)

    def finish(self) -> str:
        """Put everything on stable storage and return the SHA-256 of the whole. Blocking."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def move_to(self, target: Path) -> None:
        """Give the finished file its place, atomically and durably. Blocking."""
        self.close()
        self.path.chmod(0o644)
        self.path.replace(target)
        descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._notes.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what is there. Blocking, idempotent."""
        self.close()
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)
        self._num_bytes = 0

    def close(self) -> None:
        """Close the file and keep what is there for later."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _truncate(self) -> None:
        assert self._file is not None
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self._num_bytes = 0
