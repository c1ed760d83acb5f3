"""Reads engines' rotating logs, their end first and then what is added. Touches the log directory.

A name is looked for among the files that are there, and never made into a path.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from stoker.clock import Clock

MAX_LINES = 5000
_TAIL_BYTES = 512 * 2**10
_READ_BYTES = 256 * 2**10
_POLL_S = 0.2
_SUFFIX = ".log"
_REPLICA_OF = re.compile(r"^(?P<deployment>.+)-[0-9a-f]{8}$")


def logs_of(log_dir: Path, name: str) -> dict[str, Path]:
    """Return engine id → log file of a replica, or of all replicas of a deployment, the oldest first. Blocking."""
    try:
        found = [entry for entry in os.scandir(log_dir) if entry.name.endswith(_SUFFIX) and entry.is_file()]
    except OSError:
        return {}
    chosen: list[tuple[float, str, Path]] = []
    for entry in found:
        engine_id = entry.name.removesuffix(_SUFFIX)
        match = _REPLICA_OF.match(engine_id)
        if engine_id == name or (match is not None and match["deployment"] == name):
            try:
                chosen.append((entry.stat().st_mtime, engine_id, Path(entry.path)))
            except OSError:
                continue
    return {engine_id: path for _, engine_id, path in sorted(chosen)}


@dataclass(slots=True)
class _Place:
    """How far one file was read; `rest` is a line without its end."""

    inode: int
    offset: int
    rest: bytes = b""


class LogTail:
    """The lines of one name's logs.

    Args:
        lines: how many of the last lines of each file come first.
        labels: put the engine id before each line.
    """

    def __init__(self, log_dir: Path, name: str, *, lines: int, labels: bool, clock: Clock) -> None:
        self._log_dir = log_dir
        self._name = name
        self._lines = min(max(0, lines), MAX_LINES)
        self._labels = labels
        self._clock = clock
        self._places: dict[str, _Place] = {}

    async def read(self, *, follow: bool, is_over: Callable[[], bool] = bool) -> AsyncIterator[bytes]:
        """Yield lines with their ends; with `follow` until the reader goes away or `is_over` says so."""
        first = True
        while True:
            for line in await asyncio.to_thread(self._read_once, is_first=first):
                yield line
            if not follow or is_over():
                for engine_id, place in self._places.items():
                    if place.rest:
                        yield self._written(engine_id, place.rest)
                return
            first = False
            await self._clock.sleep(_POLL_S)

    def _read_once(self, *, is_first: bool) -> list[bytes]:
        out: list[bytes] = []
        for engine_id, path in logs_of(self._log_dir, self._name).items():
            try:
                lines = self._new_lines(engine_id, path, is_first=is_first)
            except OSError:
                continue  # rotated away between the listing and the opening; the next round finds its successor
            out += [self._written(engine_id, line) for line in lines]
        return out

    def _new_lines(self, engine_id: str, path: Path, *, is_first: bool) -> list[bytes]:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            place = self._places.get(engine_id)
            is_opening = place is None and is_first
            if place is None or place.inode != facts.st_ino or facts.st_size < place.offset:
                start = max(0, facts.st_size - _TAIL_BYTES) if is_opening else 0
                place = self._places[engine_id] = _Place(facts.st_ino, start)
            file.seek(place.offset)
            content = file.read(_TAIL_BYTES if is_opening else _READ_BYTES)
        is_cut = is_opening and place.offset > 0
        place.offset += len(content)
        *lines, place.rest = (place.rest + content).split(b"\n")
        if len(place.rest) > _READ_BYTES:  # an endless line is passed on in pieces
            lines, place.rest = [*lines, place.rest], b""
        if is_cut and lines:
            lines = lines[1:]
        return lines[len(lines) - self._lines :] if is_opening and len(lines) > self._lines else lines

    def _written(self, engine_id: str, line: bytes) -> bytes:
        label = f"{engine_id} │ ".encode() if self._labels else b""
        return label + line.rstrip(b"\r") + b"\n"
