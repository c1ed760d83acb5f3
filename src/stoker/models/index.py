"""What the store remembers about files: which content a source gave, and what a file looked like when it was hashed.

Touches files. Small JSON documents, written atomically; a damaged one counts as absent and is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_READ_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file changes; equal stamps mean the bytes that were hashed.

    `ctime_ns` is set by the kernel alone, so that a file whose times were set back is still seen.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Raises `OSError` when there is no such file."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it was when it was hashed last."""

    sha256: str
    stamp: Stamp
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ref:
    """What a source gave.

    Attributes:
        name: the model's name at that time.
        path: where the file lies; inside the store unless the source is a local file.
    """

    source: str
    name: str
    sha256: str
    size_bytes: int
    path: str
    licence: str | None = None


def source_key(source: str) -> str:
    """Return the file name that stands for a source."""
    return hashlib.sha256(source.encode()).hexdigest()[:32]


def hash_file(path: Path) -> tuple[str, Stamp]:
    """Return a file's SHA-256 and the stamp it had throughout. Blocking, 0.1–0.3 s for 100 MB.

    Raises:
        OSError: it cannot be read, or it changed meanwhile.
    """
    before = Stamp.of(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    after = Stamp.of(path)
    if before != after:
        raise OSError(f"{path} changed while it was read")
    return digest.hexdigest(), after


class Index:
    """The `refs/` and `stamps/` of one cache directory."""

    def __init__(self, root: Path) -> None:
        self._refs = root / "refs"
        self._stamps = root / "stamps"

    def ref(self, source: str) -> Ref | None:
        """Return what a source gave when it was fetched last."""
        return self._read_ref(self._refs / f"{source_key(source)}.json")

    def put_ref(self, ref: Ref) -> None:
        """Remember what a source gave."""
        _write_json(self._refs / f"{source_key(ref.source)}.json", asdict(ref))

    def drop_ref(self, source: str) -> None:
        """Forget a source."""
        (self._refs / f"{source_key(source)}.json").unlink(missing_ok=True)

    def refs(self) -> Iterator[Ref]:
        """Yield all that is remembered, by name."""
        found = [ref for path in self._refs.glob("*.json") if (ref := self._read_ref(path)) is not None]
        yield from sorted(found, key=lambda ref: (ref.name, ref.source))

    def seen(self, path: Path) -> Seen | None:
        """Return what was found when `path` was hashed last."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            document = json.loads(self._stamp_path(path).read_text())
            return Seen(str(document["sha256"]), Stamp(**document["stamp"]), dict(document["facts"]))
        return None

    def put_seen(self, path: Path, seen: Seen) -> None:
        """Remember a hash. A cache that cannot be written is no error: the file is then hashed again next time."""
        with contextlib.suppress(OSError):
            _write_json(self._stamp_path(path), asdict(seen))

    def drop_seen(self, path: Path) -> None:
        """Forget a file."""
        self._stamp_path(path).unlink(missing_ok=True)

    def _stamp_path(self, path: Path) -> Path:
        return self._stamps / f"{source_key(str(path))}.json"

    @staticmethod
    def _read_ref(path: Path) -> Ref | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Ref(**json.loads(path.read_text()))
        return None


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
