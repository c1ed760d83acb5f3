"""An engine's output: always drained, written to a log of bounded size, its end remembered. Writes files."""

from __future__ import annotations

import contextlib
import os

MAX_LOG_BYTES = 8 * 2**20
"""One file and its predecessor (`.1`) stand on the disk at most."""
LAST_WORDS_BYTES = 4096


class RotatingLog:
    """Takes bytes and never fails: on a full disk the output is lost, but the engine is not blocked."""

    def __init__(self, path: str, *, max_bytes: int = MAX_LOG_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._tail = b""
        self._fd: int | None = None
        self._size_bytes = 0
        self._open()

    @property
    def last_words(self) -> str:
        """The end of the output, at most `LAST_WORDS_BYTES`."""
        return self._tail.decode(errors="replace")

    def write(self, content: bytes) -> None:
        """Append, starting the file anew when it has grown to its limit."""
        self._tail = (self._tail + content)[-LAST_WORDS_BYTES:]
        if self._size_bytes + len(content) > self._max_bytes and self._size_bytes:
            self.close()
            with contextlib.suppress(OSError):
                os.replace(self._path, f"{self._path}.1")
            self._open()
        if self._fd is not None:
            with contextlib.suppress(OSError):
                self._size_bytes += os.write(self._fd, content)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> None:
        self._size_bytes = 0
        with contextlib.suppress(OSError):
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size_bytes = os.fstat(self._fd).st_size
