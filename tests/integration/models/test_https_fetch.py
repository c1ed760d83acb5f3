"""Downloads from a loopback server that cuts, resumes, tampers and leads astray."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stoker.clock import SystemClock
from stoker.config.settings import ModelSettings
from stoker.errors import ModelUnavailable
from stoker.models.fetch_https import HttpsFetcher
from stoker.models.store import ModelStore
from stoker.testing.gguf import tiny_gguf

CONTENT = tiny_gguf(padding_bytes=3 * 2**20)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OTHER = tiny_gguf({"general.name": "Another"}, padding_bytes=3 * 2**20)

Headers = dict[str, str]
Answer = tuple[str, Headers, bytes, int | None]  # status, headers, body, bytes after which the connection is cut
Answering = Callable[[int, str, Headers], Answer]


class Hurried(SystemClock):
    """Waiting takes one turn of the loop; what was asked for is remembered."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        await asyncio.sleep(0)


class Origin:
    """A loopback HTTP server; `answer` decides by the request's number, path and headers."""

    def __init__(self, answer: Answering) -> None:
        self.answer = answer
        self.requests: list[tuple[str, Headers]] = []
        self.port = 0
        self.connections: set[asyncio.Task[None]] = set()

    def url(self, path: str = "/tiny.gguf", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def pinned(self, digest: str = DIGEST) -> ModelSettings:
        return ModelSettings(source=self.url(), sha256=digest, allow_private=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self.connections.add(task)
        await asyncio.wait({task})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                request, *lines = head.strip().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                path = request.split(" ")[1]
                self.requests.append((path, headers))
                status, extra, body, cut = self.answer(len(self.requests), path, headers)
                if "Content-Length" not in extra and "Transfer-Encoding" not in extra:
                    extra = {**extra, "Content-Length": str(len(body))}
                writer.write(f"HTTP/1.1 {status}\r\n".encode())
                writer.write("".join(f"{name}: {value}\r\n" for name, value in extra.items()).encode() + b"\r\n")
                writer.write(body[:cut])
                await writer.drain()
                if cut is not None:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def origin(answer: Answering) -> AsyncIterator[Origin]:
    made = Origin(answer)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in made.connections:
            task.cancel()
        await asyncio.gather(*made.connections, return_exceptions=True)


def ranged(content: bytes, headers: Headers, *, etag: str = '"v1"', cut: int | None = None) -> Answer:
    """Answer as a server does that understands `Range` and `If-Range`."""
    wanted = headers.get("range")
    if wanted is None or headers.get("if-range", etag) != etag:
        return "200 OK", {"ETag": etag}, content, cut
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    if start >= len(content):
        return "416 Range Not Satisfiable", {"Content-Range": f"bytes */{len(content)}"}, b"", None
    extent = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return "206 Partial Content", {"ETag": etag, "Content-Range": extent}, content[start:], cut


@pytest.fixture
def clock() -> Hurried:
    return Hurried()


@pytest.fixture
def store(tmp_path: Path, clock: Hurried) -> ModelStore:
    return ModelStore(tmp_path, clock=clock)


async def test_a_download_goes_on_after_each_cut_and_transfers_nothing_twice(store: ModelStore) -> None:
    step = 2**20
    async with origin(
        lambda number, path, headers: ranged(CONTENT, headers, cut=step if number < 4 else None)
    ) as server:
        found = await store.ensure("tiny", server.pinned())
    assert found.sha256 == DIGEST
    assert found.path.read_bytes() == CONTENT
    starts = [int(headers.get("range", "bytes=0-")[6:-1]) for _, headers in server.requests]
    assert starts == sorted(set(starts))
    assert len(starts) == 4
    assert all(headers["if-range"] == '"v1"' for _, headers in server.requests[1:])


async def test_a_cancelled_download_goes_on_in_the_next_process(store: ModelStore, tmp_path: Path) -> None:
    half = len(CONTENT) // 2

    def answer(number: int, path: str, headers: Headers) -> Answer:
        if number > 1:
            return ranged(CONTENT, headers)
        return "200 OK", {"ETag": '"v1"', "Content-Length": str(len(CONTENT))}, CONTENT[:half], None  # and then nothing

    async with origin(answer) as server:
        arrived = asyncio.Event()
        report = lambda report: arrived.set() if report.done_bytes >= half else None  # noqa: E731
        task = asyncio.create_task(store.ensure("tiny", server.pinned(), progress=report))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (partial,) = store.list()
        assert (partial.state, partial.size_bytes) == ("partial", half)
        found = await ModelStore(tmp_path).ensure("tiny", server.pinned())
    assert server.requests[1][1]["range"] == f"bytes={half}-"
    assert found.path.read_bytes() == CONTENT
    assert [model.state for model in store.list()] == ["verified"]


async def test_a_file_that_changed_between_two_halves_is_taken_anew(store: ModelStore) -> None:
    def answer(number: int, path: str, headers: Headers) -> Answer:
        if number == 1:
            return ranged(OTHER, headers, etag='"old"', cut=2**20)
        return ranged(CONTENT, headers, etag='"new"')

    async with origin(answer) as server:
        found = await store.ensure("tiny", server.pinned())
    assert found.path.read_bytes() == CONTENT
    assert len(server.requests) == 2


async def test_halves_of_two_files_under_one_etag_are_noticed_and_taken_anew(store: ModelStore) -> None:
    def answer(number: int, path: str, headers: Headers) -> Answer:
        if number == 1:
            return ranged(OTHER, headers, cut=2**20)
        return ranged(CONTENT, headers)

    async with origin(answer) as server:
        assert (await store.ensure("tiny", server.pinned())).path.read_bytes() == CONTENT
    assert ["range" in headers for _, headers in server.requests] == [False, True, False]


async def test_a_server_that_ignores_ranges_is_read_from_the_start(store: ModelStore) -> None:
    def answer(number: int, path: str, headers: Headers) -> Answer:
        return "200 OK", {}, CONTENT, 2**20 if number == 1 else None

    async with origin(answer) as server:
        assert (await store.ensure("tiny", server.pinned())).path.read_bytes() == CONTENT


async def test_a_part_that_is_already_whole_is_only_confirmed(store: ModelStore, tmp_path: Path) -> None:
    def answer(number: int, path: str, headers: Headers) -> Answer:
        return ranged(CONTENT, headers, cut=2**20) if number == 1 else ("404 Gone", {}, b"", None)

    async with origin(answer) as server:
        with pytest.raises(ModelUnavailable):
            await store.ensure("tiny", server.pinned())
        (part,) = (tmp_path / "partial").glob("*.part")
        part.write_bytes(CONTENT)
        server.answer = lambda number, path, headers: ranged(CONTENT, headers)
        assert (await store.ensure("tiny", server.pinned())).sha256 == DIGEST
    assert server.requests[-1][1]["range"] == f"bytes={len(CONTENT)}-"


async def test_another_part_than_asked_for_is_refused(store: ModelStore) -> None:
    def answer(number: int, path: str, headers: Headers) -> Answer:
        if number == 1:
            return ranged(CONTENT, headers, cut=2**20)
        extent = f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}"
        return "206 Partial Content", {"ETag": '"v1"', "Content-Range": extent}, CONTENT[5:], None

    async with origin(answer) as server:
        with pytest.raises(ModelUnavailable, match="another part of the file"):
            await store.ensure("tiny", server.pinned())


async def test_tampered_content_is_thrown_away_and_named(store: ModelStore) -> None:
    async with origin(lambda number, path, headers: ("200 OK", {}, OTHER, None)) as server:
        with pytest.raises(ModelUnavailable, match="thrown away") as caught:
            await store.ensure("tiny", server.pinned())
    assert server.url() in caught.value.message
    assert store.list() == ()


async def test_a_server_that_always_cuts_before_the_first_byte_is_given_up(store: ModelStore, clock: Hurried) -> None:
    async with origin(lambda number, path, headers: ("200 OK", {"Content-Length": "99"}, b"", 0)) as server:
        with pytest.raises(ModelUnavailable, match="could not be downloaded"):
            await store.ensure("tiny", server.pinned())
    assert len(server.requests) == 4
    assert clock.slept_s == [1.0, 2.0, 4.0]


async def test_a_server_that_gives_ten_bytes_at_a_time_is_given_up(store: ModelStore) -> None:
    def answer(number: int, path: str, headers: Headers) -> Answer:
        start = int(headers.get("range", "bytes=0-")[6:-1])
        extent = f"bytes {start}-{start + 9}/{len(CONTENT)}"
        return "206 Partial Content", {"ETag": '"v1"', "Content-Range": extent}, CONTENT[start : start + 10], None

    async with origin(answer) as server:
        with pytest.raises(ModelUnavailable, match="the next attempt goes on from there"):
            await store.ensure("tiny", server.pinned())
    assert len(server.requests) == 50


async def test_a_busy_server_is_asked_again_when_it_says(store: ModelStore, clock: Hurried) -> None:
    def answer(number: int, path: str, headers: Headers) -> Answer:
        return ("503 Busy", {"Retry-After": "7"}, b"", None) if number == 1 else ranged(CONTENT, headers)

    async with origin(answer) as server:
        assert (await store.ensure("tiny", server.pinned())).sha256 == DIGEST
    assert clock.slept_s == [7.0]


@pytest.mark.parametrize(
    ("status", "words"),
    [("404 Not Found", "no such file"), ("403 Forbidden", "refuses access"), ("400 Bad", "answers 400")],
)
async def test_a_final_answer_is_not_asked_for_twice(store: ModelStore, status: str, words: str) -> None:
    async with origin(lambda number, path, headers: (status, {}, b"", None)) as server:
        with pytest.raises(ModelUnavailable, match=words):
            await store.ensure("tiny", server.pinned())
    assert len(server.requests) == 1


async def test_more_than_was_announced_is_refused(store: ModelStore) -> None:
    def answer(number: int, path: str, headers: Headers) -> Answer:
        if number == 1:
            return ranged(CONTENT, headers, cut=2**20)
        start = int(headers["range"][6:-1])
        extent = f"bytes {start}-{start + 9}/{start + 10}"
        return "206 Partial Content", {"ETag": '"v1"', "Content-Range": extent}, CONTENT, None

    async with origin(answer) as server:
        with pytest.raises(ModelUnavailable, match="more than the"):
            await store.ensure("tiny", server.pinned())


# ---------------------------------------------------------------------------------------------- where it may go


async def test_a_private_address_is_refused_without_a_connection(store: ModelStore) -> None:
    async with origin(lambda number, path, headers: ranged(CONTENT, headers)) as server:
        for host in ("127.0.0.1", "localhost"):
            settings = ModelSettings(source=server.url(host=host), sha256=DIGEST)
            with pytest.raises(ModelUnavailable, match="not a public address") as caught:
                await store.ensure("tiny", settings)
            assert "allow_private" in (caught.value.mend or "")
    assert server.requests == []


async def test_redirects_are_followed_and_counted(store: ModelStore) -> None:
    def answer(number: int, path: str, headers: Headers) -> Answer:
        if path == "/tiny.gguf":
            return "302 Found", {"Location": "/elsewhere?signed=1"}, b"", None
        return ranged(CONTENT, headers)

    async with origin(answer) as server:
        assert (await store.ensure("tiny", server.pinned())).sha256 == DIGEST
        server.answer = lambda number, path, headers: ("302 Found", {"Location": "/again"}, b"", None)
        with pytest.raises(ModelUnavailable, match="redirected more than 5 times"):
            await store.ensure(
                "other", ModelSettings(source=server.url("/o.gguf"), sha256="0" * 64, allow_private=True)
            )


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://:80/"])
async def test_a_redirect_to_another_kind_of_address_is_refused(store: ModelStore, location: str) -> None:
    async with origin(lambda number, path, headers: ("302 Found", {"Location": location}, b"", None)) as server:
        with pytest.raises(ModelUnavailable, match="which is not https"):
            await store.ensure("tiny", server.pinned())


async def test_the_hub_token_goes_to_no_other_host(tmp_path: Path) -> None:
    fetcher = HttpsFetcher(hub_token="hf_secret", clock=Hurried())
    store = ModelStore(tmp_path, fetchers={"https": fetcher})
    async with origin(lambda number, path, headers: ranged(CONTENT, headers)) as server:
        await store.ensure("tiny", server.pinned())
    assert all("authorization" not in headers for _, headers in server.requests)


async def test_two_stores_on_one_directory_fetch_once(tmp_path: Path) -> None:
    async with origin(lambda number, path, headers: ranged(CONTENT, headers)) as server:
        stores = [ModelStore(tmp_path) for _ in range(3)]
        found = await asyncio.gather(*(store.ensure("tiny", server.pinned()) for store in stores))
    assert {file.path for file in found} == {tmp_path / "blobs" / "sha256" / DIGEST}
    assert len(server.requests) == 1
