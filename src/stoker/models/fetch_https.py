"""Weights over HTTPS, Hugging Face included: resumed after a cut, redirected to checked hosts. Uses the network."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

import aiohttp

from stoker.clock import Clock, SystemClock
from stoker.config.sources import Source
from stoker.errors import ModelUnavailable
from stoker.models.dialling import check_host, open_session
from stoker.models.fetching import Report
from stoker.models.partial import PartFile, mebibytes

HUB_HOST = "huggingface.co"
_MAX_REDIRECTS = 5
_MAX_FRUITLESS_ATTEMPTS = 4  # in a row, without a byte
_MAX_ATTEMPTS = 50  # in all, against a server that gives one byte at a time
_CHUNK_BYTES = 2**20
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=30.0, sock_connect=30.0, sock_read=60.0)
_CONTENT_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+|\*)$")
_MAX_RETRY_AFTER_S = 60.0


class _Interrupted(Exception):
    """The transfer broke off and may be continued.

    Args:
        retry_after_s: what the server asked for, None without.
    """

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class HttpsFetcher:
    """Downloads with `Range` and `If-Range`; tries again while bytes keep coming.

    Args:
        hub_token: sent to huggingface.co and nowhere else, None for public files only.
    """

    def __init__(self, *, hub_token: str | None = None, clock: Clock | None = None) -> None:
        self._hub_token = hub_token
        self._clock = clock or SystemClock()

    async def fetch(self, source: Source, part: PartFile, *, allow_private: bool, report: Report) -> None:
        """Complete `part` from the source's address; see `Fetcher`."""
        assert source.url is not None
        fruitless = 0
        async with open_session(allow_private=allow_private, timeout=_TIMEOUT) as session:
            for _ in range(_MAX_ATTEMPTS):
                before_bytes = part.num_bytes
                try:
                    await self._transfer(session, source, part, allow_private=allow_private, report=report)
                    return
                except _Interrupted as exc:
                    interrupted = exc
                except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                    interrupted = _Interrupted(str(exc) or type(exc).__name__)
                fruitless = 0 if part.num_bytes > before_bytes else fruitless + 1
                if fruitless >= _MAX_FRUITLESS_ATTEMPTS:
                    break
                await self._clock.sleep(min(interrupted.retry_after_s or 0.5 * 2**fruitless, _MAX_RETRY_AFTER_S))
        has = (
            f"; {mebibytes(part.num_bytes)} are kept, and the next attempt goes on from there"
            if part.can_resume
            else ""
        )
        raise ModelUnavailable(
            f"{source.text} could not be downloaded: {interrupted}{has}", mend="check the network and try again"
        ) from interrupted

    async def _transfer(
        self, session: aiohttp.ClientSession, source: Source, part: PartFile, *, allow_private: bool, report: Report
    ) -> None:
        headers = {"Accept-Encoding": "identity"}
        wanted_from = part.num_bytes if part.can_resume else 0
        if wanted_from:
            headers["Range"] = f"bytes={wanted_from}-"
            if part.validator:
                headers["If-Range"] = part.validator
        response = await self._get(session, source, headers, allow_private=allow_private)
        async with response:
            if response.status == 416 and wanted_from:
                if wanted_from == _complete_bytes(response.headers):
                    return
                await asyncio.to_thread(part.begin, validator=None, total_bytes=None, is_continued=False)
                raise _Interrupted("what was there does not fit the file any more")
            _check_status(source, response)
            starts_at, total_bytes = _extent(response)
            is_continued = response.status == 206
            if starts_at != (wanted_from if is_continued else 0):
                raise ModelUnavailable(f"{source.text}: the server sent another part of the file than it was asked for")
            etag = _strong_etag(response.headers)
            await asyncio.to_thread(part.begin, validator=etag, total_bytes=total_bytes, is_continued=is_continued)
            report("downloading", part.num_bytes, total_bytes)
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                await asyncio.to_thread(part.append, chunk)
                report("downloading", part.num_bytes, total_bytes)
            if total_bytes is not None and part.num_bytes < total_bytes:
                raise _Interrupted(f"the connection ended after {part.num_bytes} of {total_bytes} bytes")

    async def _get(
        self, session: aiohttp.ClientSession, source: Source, headers: Mapping[str, str], *, allow_private: bool
    ) -> aiohttp.ClientResponse:
        """Ask, following redirects by hand: each hop is judged like the first, and the token stays with its host."""
        assert source.url is not None
        url = source.url
        for _ in range(_MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            is_safe = parts.scheme == "https" or (parts.scheme == "http" and source.url.startswith("http://"))
            if not is_safe or not parts.hostname:
                raise ModelUnavailable(f"{source.text} leads to {parts.scheme}://{parts.hostname}, which is not https")
            check_host(parts.hostname, allow_private=allow_private)
            own = {**headers}
            is_hub = source.kind == "hf" and parts.scheme == "https" and parts.hostname == HUB_HOST
            if is_hub and self._hub_token:
                own["Authorization"] = f"Bearer {self._hub_token}"
            response = await session.get(url, headers=own, allow_redirects=False)
            if response.status not in {301, 302, 303, 307, 308}:
                return response
            location = response.headers.get("Location", "")
            response.close()
            url = urljoin(url, location)
        raise ModelUnavailable(f"{source.text} is redirected more than {_MAX_REDIRECTS} times")


def _check_status(source: Source, response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status in {200, 206}:
        return
    if status in {401, 403}:
        how = "set HF_TOKEN to a token that may read it, and accept the model's terms there"
        mend = how if source.kind == "hf" else None
        raise ModelUnavailable(f"{source.text}: the server refuses access ({status})", mend=mend)
    if status in {404, 410}:
        raise ModelUnavailable(
            f"{source.text}: the server has no such file ({status})", mend="check the source's spelling"
        )
    if status in {408, 425, 429} or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise _Interrupted(f"the server answers {status}", retry_after_s=float(after) if after.isdigit() else None)
    raise ModelUnavailable(f"{source.text}: the server answers {status}")


def _extent(response: aiohttp.ClientResponse) -> tuple[int, int | None]:
    """Return where the body starts in the file and how long the whole file is."""
    if response.status == 206:
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if match is None:
            return -1, None
        return int(match[1]), None if match[3] == "*" else int(match[3])
    return 0, response.content_length


def _complete_bytes(headers: Mapping[str, str]) -> int | None:
    """Return the file's length from a 416 answer."""
    _, _, total = headers.get("Content-Range", "").partition("*/")
    return int(total) if total.isdigit() else None


def _strong_etag(headers: Mapping[str, str]) -> str | None:
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else None
