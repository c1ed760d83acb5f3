"""The store with a fetcher that gives what a test wants: no network."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path

import pytest

from stoker.clock import SystemClock
from stoker.config.settings import ModelSettings
from stoker.config.sources import Source
from stoker.errors import Conflict, ModelUnavailable, NotFound
from stoker.models.fetching import ProgressReport, Report
from stoker.models.partial import KEPT_FREE_BYTES, PartFile
from stoker.models.store import ModelStore, cache_dir
from stoker.testing.gguf import tiny_gguf

CONTENT = tiny_gguf()
DIGEST = hashlib.sha256(CONTENT).hexdigest()
URL = "https://models.example/tiny.gguf"
PINNED = ModelSettings(source=URL, sha256=DIGEST)
UNPINNED = ModelSettings(source=URL)


class Given:
    """A fetcher that gives `content`, and counts."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.num_fetches = 0
        self.gate: asyncio.Event | None = None
        self.started = asyncio.Event()

    async def fetch(self, source: Source, part: PartFile, *, allow_private: bool, report: Report) -> None:
        self.num_fetches += 1
        part.begin(validator=None, total_bytes=len(self.content), is_continued=False)
        part.append(self.content[:100])
        self.started.set()
        if self.gate is not None:
            await self.gate.wait()
        part.append(self.content[100:])
        report("downloading", part.num_bytes, len(self.content))


class Hurried(SystemClock):
    """Waiting takes one turn of the loop."""

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(0)


@pytest.fixture
def given() -> Given:
    return Given()


@pytest.fixture
def store(tmp_path: Path, given: Given) -> ModelStore:
    return ModelStore(tmp_path / "cache", fetchers={"https": given}, clock=Hurried())


def damage(path: Path, *, at: int = -1) -> None:
    """Change one byte and set the times back, as somebody would who does not want to be seen."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


async def test_a_model_is_fetched_once_and_kept_under_its_digest(
    store: ModelStore, given: Given, tmp_path: Path
) -> None:
    reports: list[ProgressReport] = []
    first = await store.ensure("tiny", PINNED, progress=reports.append)
    assert first.path == tmp_path / "cache" / "blobs" / "sha256" / DIGEST
    assert first.path.read_bytes() == CONTENT
    assert (first.sha256, first.size_bytes, first.context_tokens) == (DIGEST, len(CONTENT), 512)
    assert reports[-1] == ProgressReport("tiny", "downloading", len(CONTENT), len(CONTENT))
    assert await store.ensure("tiny", PINNED) == first
    assert given.num_fetches == 1
    assert list((tmp_path / "cache" / "partial").iterdir()) == []


async def test_a_second_use_hashes_nothing(store: ModelStore) -> None:
    await store.ensure("tiny", PINNED)
    reports: list[ProgressReport] = []
    await store.ensure("tiny", PINNED, progress=reports.append)
    assert reports == []


async def test_without_a_checksum_the_first_download_fixes_it(store: ModelStore) -> None:
    assert (await store.ensure("tiny", UNPINNED)).sha256 == DIGEST
    damage(store.list()[0].path)
    with pytest.raises(ModelUnavailable, match="tampered"):
        await store.ensure("tiny", UNPINNED)


async def test_a_tampered_file_is_named_never_served_and_mended_by_pull(store: ModelStore, given: Given) -> None:
    path = (await store.ensure("tiny", PINNED)).path
    damage(path)
    assert store.list()[0].state == "changed"
    for _ in range(2):  # and no stamp vouches for it afterwards
        with pytest.raises(ModelUnavailable) as caught:
            await store.ensure("tiny", PINNED)
        assert str(path) in caught.value.message
        assert caught.value.mend == "stoker models pull tiny"
    assert (await store.pull("tiny", PINNED)).path.read_bytes() == CONTENT
    assert given.num_fetches == 2
    await store.ensure("tiny", PINNED)


async def test_a_truncated_file_is_seen(store: ModelStore) -> None:
    path = (await store.ensure("tiny", PINNED)).path
    os.truncate(path, 1000)
    with pytest.raises(ModelUnavailable, match=f"1000 bytes, {len(CONTENT)} bytes expected"):
        await store.ensure("tiny", PINNED)


async def test_verify_hashes_in_full_even_when_nothing_looks_changed(store: ModelStore) -> None:
    reports: list[ProgressReport] = []
    await store.ensure("tiny", PINNED)
    await store.verify("tiny", PINNED, progress=reports.append)
    assert [report.phase for report in reports] == ["verifying", "verifying"]


async def test_verify_fetches_nothing(store: ModelStore, given: Given) -> None:
    with pytest.raises(ModelUnavailable, match="not in the store"):
        await store.verify("tiny", PINNED)
    assert given.num_fetches == 0


async def test_a_file_that_was_only_touched_is_hashed_again_and_served(store: ModelStore) -> None:
    path = (await store.ensure("tiny", PINNED)).path
    os.utime(path)
    reports: list[ProgressReport] = []
    await store.ensure("tiny", PINNED, progress=reports.append)
    await store.ensure("tiny", PINNED, progress=reports.append)
    assert [report.phase for report in reports] == ["verifying", "verifying"]


async def test_another_content_than_promised_is_thrown_away(store: ModelStore, given: Given, tmp_path: Path) -> None:
    given.content = tiny_gguf(padding_bytes=5)
    with pytest.raises(ModelUnavailable, match="thrown away") as caught:
        await store.ensure("tiny", PINNED)
    assert URL in caught.value.message
    assert store.list() == ()
    assert not any((tmp_path / "cache" / "blobs" / "sha256").glob("*"))


async def test_a_web_page_instead_of_weights_is_thrown_away(store: ModelStore, given: Given) -> None:
    given.content = b"<html>" + b"please log in " * 50
    with pytest.raises(ModelUnavailable, match=f"what {URL} gave is no use: .* begins with b'<htm'"):
        await store.ensure("tiny", UNPINNED)
    assert store.list() == ()


async def test_many_at_once_fetch_once(store: ModelStore, given: Given) -> None:
    found = await asyncio.gather(*(store.ensure("tiny", PINNED) for _ in range(5)))
    assert given.num_fetches == 1
    assert {file.path for file in found} == {found[0].path}


async def test_one_who_gives_up_leaves_the_others_waiting_for_the_file(store: ModelStore, given: Given) -> None:
    given.gate = asyncio.Event()
    first = asyncio.create_task(store.ensure("tiny", PINNED))
    waited = asyncio.Event()
    second = asyncio.create_task(
        store.ensure("tiny", PINNED, progress=lambda report: waited.set() if report.phase == "waiting" else None)
    )
    await waited.wait()
    first.cancel()
    given.gate.set()
    assert (await second).sha256 == DIGEST
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_no_room_is_refused_before_a_byte_with_the_arithmetic(tmp_path: Path, given: Given) -> None:
    store = ModelStore(tmp_path, fetchers={"https": given}, free=lambda _: KEPT_FREE_BYTES + len(CONTENT) - 1)
    with pytest.raises(
        ModelUnavailable, match=r"0\.0 MiB to write \+ 64\.0 MiB kept free = 64\.0 MiB, and 64\.0 MiB"
    ) as no:
        await store.ensure("tiny", PINNED)
    assert "STOKER_CACHE_DIR" in (no.value.mend or "")
    store = ModelStore(tmp_path, fetchers={"https": given}, free=lambda _: KEPT_FREE_BYTES + len(CONTENT))
    assert (await store.ensure("tiny", PINNED)).sha256 == DIGEST


async def test_a_full_disk_says_so(tmp_path: Path) -> None:
    class Full(Given):
        async def fetch(self, source: Source, part: PartFile, *, allow_private: bool, report: Report) -> None:
            part.begin(validator=None, total_bytes=None, is_continued=False)
            part._file = FullFile()  # type: ignore[assignment]
            part.append(b"x")

    class FullFile:
        def write(self, chunk: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def truncate(self, size: int) -> None: ...
        def close(self) -> None: ...

    with pytest.raises(ModelUnavailable, match="is full after"):
        await ModelStore(tmp_path, fetchers={"https": Full()}).ensure("tiny", PINNED)


async def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, given: Given) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(ModelUnavailable, match=r"the model cache .* cannot be used"):
        await ModelStore(tmp_path / "cache", fetchers={"https": given}).ensure("tiny", PINNED)


async def test_a_whole_repository_is_for_engines_that_load_it_themselves(store: ModelStore) -> None:
    with pytest.raises(ModelUnavailable, match="whole repository"):
        await store.ensure("tiny", ModelSettings(source="hf://owner/repository"))


# ---------------------------------------------------------------------------------------------- local files


async def test_a_local_file_is_used_where_it_lies(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(CONTENT)
    found = await store.ensure("own", ModelSettings(source=f"file://{path}"))
    assert (found.path, found.sha256) == (path, DIGEST)
    assert store.list()[0].is_local
    assert store.remove("own") == 0
    assert path.exists()
    assert store.list() == ()


async def test_a_local_file_that_changes_is_refused_until_it_is_accepted(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(CONTENT)
    settings = ModelSettings(source=f"file://{path}")
    await store.ensure("own", settings)
    path.write_bytes(tiny_gguf(padding_bytes=3))
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match=r"own\.gguf has changed") as caught:
            await store.ensure("own", settings)
        assert "stoker models pull own" in (caught.value.mend or "")
    accepted = await store.pull("own", settings)
    assert await store.ensure("own", settings) == accepted


async def test_a_pinned_local_file_that_changes_is_never_accepted(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(tiny_gguf(padding_bytes=3))
    settings = ModelSettings(source=f"file://{path}", sha256=DIGEST)
    for attempt in (store.ensure, store.pull, store.ensure):
        with pytest.raises(ModelUnavailable, match="instead of"):
            await attempt("own", settings)


@pytest.mark.parametrize("what", ["absent", "directory", "cut off"])
async def test_a_local_file_that_cannot_serve_is_named(store: ModelStore, tmp_path: Path, what: str) -> None:
    path = tmp_path / "own.gguf"
    if what == "directory":
        path.mkdir()
    elif what == "cut off":
        path.write_bytes(CONTENT[:-10])
    with pytest.raises(ModelUnavailable, match=r"own\.gguf"):
        await store.ensure("own", ModelSettings(source=f"file://{path}"))


async def test_formats_of_other_engines_are_taken_as_they_are(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    path.write_bytes(b"anything")
    assert (await store.ensure("own", ModelSettings(source=f"file://{path}"))).context_tokens is None


# ---------------------------------------------------------------------------------------------- list and remove


async def test_content_that_two_sources_gave_goes_with_the_second(store: ModelStore) -> None:
    other = ModelSettings(source="https://mirror.example/tiny.gguf")
    path = (await store.ensure("tiny", PINNED)).path
    await store.ensure("mirrored", other)
    assert store.remove("tiny") == 0
    assert path.exists()
    assert store.remove(DIGEST[:12]) == len(CONTENT)
    assert not path.exists()
    with pytest.raises(NotFound, match="there: nothing"):
        store.remove("tiny")


async def test_a_download_under_way_is_listed_and_not_removed(store: ModelStore, given: Given) -> None:
    given.gate = asyncio.Event()
    task = asyncio.create_task(store.ensure("tiny", PINNED))
    await given.started.wait()
    assert store.list()[0].state == "partial"
    with pytest.raises(Conflict, match="being fetched"):
        store.remove("tiny")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.remove("tiny") >= 0
    assert store.list() == ()


def test_the_cache_directory_follows_the_environment() -> None:
    assert cache_dir({"STOKER_CACHE_DIR": "/x/y"}) == Path("/x/y")
    assert cache_dir({"XDG_CACHE_HOME": "/c"}) == Path("/c/stoker")
    assert cache_dir({}) == Path.home() / ".cache" / "stoker"
