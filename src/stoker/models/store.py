"""The content-addressed store of weight files: fetched once, verified, never served damaged. Touches files, network.

blobs/sha256/<digest>     the content, complete and verified, moved here atomically
refs/<source>.json        which content a source gave
stamps/<path>.json        size, times and inode that a file had when it was hashed, and what its header says
partial/<source>.part     downloads under way, resumable
locks/<source>.lock       one fetch at a time, over processes
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from stoker.clock import Clock, SystemClock
from stoker.config.settings import ModelSettings
from stoker.config.sources import Source, parse_source
from stoker.errors import Conflict, ModelUnavailable, NotFound
from stoker.models.fetch_https import HttpsFetcher
from stoker.models.fetch_package import PackageFetcher
from stoker.models.fetching import Fetcher, Phase, Progress, ProgressReport, Report
from stoker.models.files import ModelFile
from stoker.models.gguf import GgufFacts, read_gguf
from stoker.models.index import Index, Ref, Seen, Stamp, hash_file, source_key
from stoker.models.locking import locked, try_lock
from stoker.models.partial import FreeBytes, PartFile, free_bytes, notes_path, read_notes

_OTHER_FORMATS = (".safetensors", ".onnx", ".bin", ".pt", ".pth", ".llamafile", ".task", ".engine")
_MIN_DIGEST_CHARS = 8
_R = TypeVar("_R")


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return where weights are kept: `STOKER_CACHE_DIR`, else `stoker` in the user's cache directory."""
    environ = os.environ if environ is None else environ
    if own := environ.get("STOKER_CACHE_DIR"):
        return Path(own).expanduser().absolute()
    users = environ.get("XDG_CACHE_HOME", "")
    return (Path(users) if users.startswith("/") else Path.home() / ".cache") / "stoker"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One line of `stoker models list`.

    Attributes:
        state: `verified` as it was hashed; `changed` since; `missing`; `partial`: a download to be continued.
        is_local: a `file://` source, used where it lies.
    """

    name: str
    source: str
    sha256: str | None
    size_bytes: int
    path: Path
    state: Literal["verified", "changed", "missing", "partial"]
    is_local: bool
    licence: str | None = None


class ModelStore:
    """Weights by source and content. Safe for several tasks and processes on one directory.

    Args:
        fetchers: by kind of source; the real ones by default.
        free: free bytes on a directory's disk.
    """

    def __init__(
        self,
        root: Path,
        *,
        fetchers: Mapping[str, Fetcher] | None = None,
        clock: Clock | None = None,
        free: FreeBytes = free_bytes,
    ) -> None:
        self._root = root
        self._index = Index(root)
        self._clock = clock or SystemClock()
        self._free = free
        web = HttpsFetcher(hub_token=os.environ.get("HF_TOKEN") or None, clock=self._clock)
        own: dict[str, Fetcher] = {"https": web, "hf": web, "package": PackageFetcher()}
        self._fetchers = fetchers if fetchers is not None else own

    async def ensure(self, name: str, settings: ModelSettings, *, progress: Progress | None = None) -> ModelFile:
        """Return a model's verified file, fetching it when it is not there.

        Without a download this reads a few hundred bytes: a file is hashed again only when its size, times or inode
        are not those it was last hashed with. Cancelling keeps what was downloaded for the next attempt.

        Raises:
            ModelUnavailable: it cannot be had, or what is here is cut off or tampered with; the file is named.
        """
        source, report = _parse(name, settings), _reporter(name, progress)
        if source.kind == "file":
            return await asyncio.to_thread(self._local, name, source, settings, report, accept=False, rehash=False)
        found = await asyncio.to_thread(self._present, name, source, settings, report, rehash=False)
        return found or await self._fetch(name, source, settings, report, replace=False)

    async def pull(self, name: str, settings: ModelSettings, *, progress: Progress | None = None) -> ModelFile:
        """Do as `ensure`, but hash what is there in full, and fetch it anew when it is damaged.

        A changed `file://` model without a checksum is accepted as it is now.
        """
        source, report = _parse(name, settings), _reporter(name, progress)
        if source.kind == "file":
            return await asyncio.to_thread(self._local, name, source, settings, report, accept=True, rehash=True)
        return await self._fetch(name, source, settings, report, replace=True)

    async def verify(self, name: str, settings: ModelSettings, *, progress: Progress | None = None) -> ModelFile:
        """Hash what is there in full, fetching nothing.

        Raises:
            ModelUnavailable: it is missing, cut off or tampered with.
        """
        source, report = _parse(name, settings), _reporter(name, progress)
        if source.kind == "file":
            return await asyncio.to_thread(self._local, name, source, settings, report, accept=False, rehash=True)
        found = await asyncio.to_thread(self._present, name, source, settings, report, rehash=True)
        if found is None:
            raise ModelUnavailable(f"{name} is not in the store", mend=f"stoker models pull {name}")
        return found

    def list(self) -> tuple[StoredModel, ...]:
        """Return what is here, by name. Blocking, reads no weights."""
        stored = [self._stored(ref) for ref in self._index.refs()]
        for path in sorted((self._root / "partial").glob("*.part")):
            if (state := read_notes(path)) is not None:
                size_bytes = path.stat().st_size
                stored.append(StoredModel(state.name, state.source, None, size_bytes, path, "partial", False))
        return tuple(stored)

    def remove(self, name_or_digest: str) -> int:
        """Remove a model by name, source or the beginning of its digest; return the bytes that became free. Blocking.

        A `file://` model is forgotten and its file left alone; content that another source also gave stays.

        Raises:
            NotFound: nothing here is called that.
            Conflict: it is being fetched now.
        """
        stored = self.list()
        is_prefix = len(name_or_digest) >= _MIN_DIGEST_CHARS
        chosen = [
            model
            for model in stored
            if name_or_digest in {model.name, model.source}
            or (is_prefix and model.sha256 is not None and model.sha256.startswith(name_or_digest))
        ]
        if not chosen:
            known = ", ".join(sorted({model.name for model in stored})) or "nothing"
            raise NotFound(f"no model {name_or_digest} is in the store (there: {known})")
        return sum(self._remove_one(model) for model in chosen)

    # ------------------------------------------------------------------------------------------ what is there

    def _blob(self, digest: str) -> Path:
        return self._root / "blobs" / "sha256" / digest

    def _present(
        self, name: str, source: Source, settings: ModelSettings, report: Report, *, rehash: bool
    ) -> ModelFile | None:
        """Return the verified content of a source, None when it is not here."""
        ref = self._index.ref(source.text)
        digest = settings.sha256 or (ref.sha256 if ref else None)
        if digest is None or not (path := self._blob(digest)).exists():
            return None
        mend = f"stoker models pull {name}"
        seen = self._seen(path, source.file_name, report, expected=digest, rehash=rehash, mend=mend)
        if seen.sha256 != digest:
            size = f", {ref.size_bytes} bytes expected" if ref and ref.size_bytes != seen.stamp.size_bytes else ""
            raise ModelUnavailable(
                f"{name}: {path} is damaged or was tampered with: {seen.stamp.size_bytes} bytes{size}, "
                f"SHA-256 {seen.sha256[:12]}… instead of {digest[:12]}…",
                mend=mend,
            )
        if ref is None or ref.sha256 != digest:
            self._remember(_ref(name, source, settings, path, seen))
        return _model_file(name, path, seen)

    def _local(
        self, name: str, source: Source, settings: ModelSettings, report: Report, *, accept: bool, rehash: bool
    ) -> ModelFile:
        """Return a `file://` model, used where it lies."""
        path = Path(source.path).expanduser()
        if not path.is_file():
            what = "is a directory; name one file" if path.is_dir() else "is not there"
            raise ModelUnavailable(f"{name}: {path} {what}", mend="correct `source` in the configuration")
        seen = self._seen(path, source.file_name, report, expected=settings.sha256, rehash=rehash, mend=None)
        ref = self._index.ref(source.text)
        if settings.sha256 is not None and seen.sha256 != settings.sha256:
            raise ModelUnavailable(
                f"{name}: {path} has SHA-256 {seen.sha256[:12]}… instead of {settings.sha256[:12]}…",
                mend="put the right file there, or correct `sha256` in the configuration",
            )
        if settings.sha256 is None and ref is not None and ref.sha256 != seen.sha256 and not accept:
            raise ModelUnavailable(
                f"{name}: {path} has changed since it was first used: SHA-256 {seen.sha256[:12]}… "
                f"instead of {ref.sha256[:12]}…",
                mend=f"if that was meant, accept it with `stoker models pull {name}`",
            )
        if ref is None or ref.sha256 != seen.sha256 or ref.name != name:
            self._remember(_ref(name, source, settings, path, seen))
        return _model_file(name, path, seen)

    def _remember(self, ref: Ref) -> None:
        """Keep a ref; a cache that can only be read still serves what is in it."""
        with contextlib.suppress(OSError):
            self._index.put_ref(ref)

    def _seen(
        self, path: Path, file_name: str, report: Report, *, expected: str | None, rehash: bool, mend: str | None
    ) -> Seen:
        """Return what `path` holds, from memory when its stamp is the one it was hashed with.

        Content that is not `expected` is hashed but neither read nor remembered, so that no stamp ever vouches for it.
        """
        try:
            stamp = Stamp.of(path)
            known = self._index.seen(path)
            if known is not None and known.stamp == stamp and not rehash:
                return known
            report("verifying", 0, stamp.size_bytes)
            digest, stamp = hash_file(path)
        except OSError as exc:
            raise ModelUnavailable(f"{path} cannot be read: {exc.strerror or exc}", mend=mend) from exc
        report("verifying", stamp.size_bytes, stamp.size_bytes)
        if expected not in {None, digest}:
            return Seen(digest, stamp)
        is_known = known is not None and known.sha256 == digest
        facts = known.facts if known is not None and is_known else dict(_header(path, file_name).facts)
        seen = Seen(digest, stamp, facts)
        self._index.put_seen(path, seen)
        return seen

    def _stored(self, ref: Ref) -> StoredModel:
        path = Path(ref.path)
        state: Literal["verified", "changed", "missing"] = "missing"
        try:
            seen = self._index.seen(path)
            stamp = Stamp.of(path)
            state = "verified" if seen is not None and seen.stamp == stamp and seen.sha256 == ref.sha256 else "changed"
        except OSError:
            pass
        is_local = ref.source.startswith("file://")
        return StoredModel(ref.name, ref.source, ref.sha256, ref.size_bytes, path, state, is_local, ref.licence)

    def _remove_one(self, model: StoredModel) -> int:
        descriptor = _writing(self._root, try_lock, self._lock_path(model.source))
        if descriptor is None:
            raise Conflict(f"{model.name} is being fetched now", mend="stop that first, or wait for its end")
        try:
            if model.state == "partial":
                size_bytes = model.path.stat().st_size if model.path.exists() else 0
                model.path.unlink(missing_ok=True)
                notes_path(model.path).unlink(missing_ok=True)
                return size_bytes
            self._index.drop_ref(model.source)
            is_shared = any(ref.path == str(model.path) for ref in self._index.refs())
            if is_shared:
                return 0
            self._index.drop_seen(model.path)
            if model.is_local or not model.path.exists():
                return 0
            size_bytes = model.path.stat().st_size
            model.path.unlink()
            return size_bytes
        finally:
            os.close(descriptor)

    # ------------------------------------------------------------------------------------------ fetching

    def _lock_path(self, source: str) -> Path:
        return self._root / "locks" / f"{source_key(source)}.lock"

    async def _fetch(
        self, name: str, source: Source, settings: ModelSettings, report: Report, *, replace: bool
    ) -> ModelFile:
        if source.kind == "hf" and not source.path:
            raise ModelUnavailable(
                f"{name}: {source.text} is a whole repository, which only an engine that loads its own weights can use",
                mend="add the path of one file to `source`",
            )
        try:
            async with locked(
                self._lock_path(source.text), clock=self._clock, on_wait=lambda: report("waiting", 0, None)
            ):
                try:
                    found = await asyncio.to_thread(self._present, name, source, settings, report, rehash=replace)
                except ModelUnavailable:
                    if not replace:
                        raise
                    found = None
                return found or await self._download(name, source, settings, report)
        except OSError as exc:
            raise _unwritable(self._root, exc) from exc

    async def _download(self, name: str, source: Source, settings: ModelSettings, report: Report) -> ModelFile:
        folder = self._root / "partial"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{source_key(source.text)}.part"
        part = PartFile(path, source=source.text, name=name, expected_sha256=settings.sha256, free=self._free)
        try:
            for is_last in (False, True):
                await asyncio.to_thread(part.open)
                fetcher = self._fetchers[source.kind]
                await fetcher.fetch(source, part, allow_private=settings.allow_private, report=report)
                digest = await asyncio.to_thread(part.finish)
                if settings.sha256 in {None, digest}:
                    break
                num_bytes, was_resumed = part.num_bytes, part.was_resumed
                await asyncio.to_thread(part.discard)
                if is_last or not was_resumed:  # two halves of two versions deserve a second try, a whole file does not
                    raise ModelUnavailable(
                        f"{name}: {source.text} gave {num_bytes} bytes with SHA-256 {digest[:12]}… instead of "
                        f"{settings.sha256[:12] if settings.sha256 else ''}…; they were thrown away",
                        mend="the file was changed or tampered with: check the source, or correct `sha256`",
                    )
            return await asyncio.to_thread(self._admit, name, source, settings, part, digest)
        finally:
            part.close()

    def _admit(self, name: str, source: Source, settings: ModelSettings, part: PartFile, digest: str) -> ModelFile:
        """Give a complete and verified download its place."""
        try:
            facts = _header(part.path, source.file_name)
        except ModelUnavailable as exc:
            part.discard()
            raise ModelUnavailable(f"{name}: what {source.text} gave is no use: {exc.message}", mend=exc.mend) from exc
        blob = self._blob(digest)
        blob.parent.mkdir(parents=True, exist_ok=True)
        part.move_to(blob)
        seen = Seen(digest, Stamp.of(blob), dict(facts.facts))
        self._index.put_seen(blob, seen)
        self._index.put_ref(_ref(name, source, settings, blob, seen))
        return _model_file(name, blob, seen)


def _parse(name: str, settings: ModelSettings) -> Source:
    try:
        return parse_source(settings.source)
    except ValueError as exc:
        raise ModelUnavailable(f"{name}: {exc}") from exc


def _reporter(name: str, progress: Progress | None) -> Report:
    def report(phase: Phase, done_bytes: int, total_bytes: int | None) -> None:
        if progress is not None:
            progress(ProgressReport(name, phase, done_bytes, total_bytes))

    return report


def _header(path: Path, file_name: str) -> GgufFacts:
    """Read what the file says of itself; formats that only other engines read are taken as they are."""
    return GgufFacts({}) if file_name.lower().endswith(_OTHER_FORMATS) else read_gguf(path)


def _ref(name: str, source: Source, settings: ModelSettings, path: Path, seen: Seen) -> Ref:
    return Ref(source.text, name, seen.sha256, seen.stamp.size_bytes, str(path), settings.licence)


def _model_file(name: str, path: Path, seen: Seen) -> ModelFile:
    facts = GgufFacts(seen.facts)
    return ModelFile(
        name=name,
        path=path,
        sha256=seen.sha256,
        size_bytes=seen.stamp.size_bytes,
        context_tokens=facts.context_tokens,
        has_chat_template=facts.has_chat_template,
        metadata=facts.facts,
    )


def _writing(root: Path, act: Callable[..., _R], *args: object) -> _R:
    try:
        return act(*args)
    except OSError as exc:
        raise _unwritable(root, exc) from exc


def _unwritable(root: Path, exc: OSError) -> ModelUnavailable:
    return ModelUnavailable(
        f"the model cache {root} cannot be used: {exc.strerror or exc}",
        mend="make it writable, or set STOKER_CACHE_DIR",
    )
