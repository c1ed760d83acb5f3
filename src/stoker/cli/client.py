"""Talks to the running server: finds it by its state directory, then plain HTTP. Touches files and loopback sockets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stoker.cli.terminal import NoServer
from stoker.errors import StokerError

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

_TIMEOUT_S = 60.0
LONG_TIMEOUT_S = 3600.0
"""For what may fetch gigabytes first."""
_UP = "start one with `stoker up`"


class ServerSaid(StokerError):
    """An error that the server answered with.

    Args:
        said_code: the server's own code.
        details: the rest of the error document, e.g. `conflicts`.
    """

    def __init__(self, message: str, *, said_code: str, mend: str | None, details: Mapping[str, Any]) -> None:
        super().__init__(message, mend=mend)
        self.code = said_code  # type: ignore[misc]  # every other class has one code; this one repeats another's
        self.details = details


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful answer; `body` is None for 204."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def etag(self) -> str:
        return self.headers.get("etag", "*")


class Client:
    """One server's `/admin` and `/v1`.

    Args:
        url: `http://host:port`.
        token: the admin token.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._token = token

    @classmethod
    def find(cls, state_dir: Path) -> Client:
        """Return a client for the server that uses this state directory.

        Raises:
            NoServer: none has published itself there.
            StateDirUnusable: its token cannot be read.
        """
        from stoker.ledger.statedir import read_admin_token  # noqa: PLC0415 - kept out of `stoker --help`

        try:
            published = json.loads((state_dir / "run" / "server.json").read_text(encoding="utf-8"))
            url = str(published["url"])
        except (OSError, ValueError, KeyError, TypeError):
            raise NoServer(f"no Stoker runs with the state directory {state_dir}", mend=_UP) from None
        token = read_admin_token(state_dir)
        if token is None:
            raise NoServer(f"there is no admin token in {state_dir}", mend=_UP)
        return cls(url, token)

    def get(self, path: str) -> Any:
        """Return the JSON body of a GET."""
        return self.send("GET", path).body

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        if_match: str | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> Reply:
        """Send one request to `/admin`.

        Raises:
            NoServer: nothing answers.
            ServerSaid: the server refused.
        """
        headers = {"Authorization": f"Bearer {self._token}", "X-Stoker-Author": "cli"}
        if if_match is not None:
            headers["If-Match"] = if_match
        with self._exchange(method, path, body, headers, timeout_s) as answer:
            content = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, json.loads(content) if content else None)

    def lines(self, path: str) -> Iterator[str]:
        """Yield lines of a text answer as they come, without a time limit between them."""
        headers = {"Authorization": f"Bearer {self._token}"}
        with self._exchange("GET", path, None, headers, None) as answer:
            yield from _lines(answer)

    @contextmanager
    def infer(self, path: str, body: Any, *, timeout_s: float = LONG_TIMEOUT_S) -> Iterator[HTTPResponse]:
        """Send one request to `/v1` with `STOKER_API_KEY` (or none) and hand over the open answer."""
        key = os.environ.get("STOKER_API_KEY") or os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with self._exchange("GET" if body is None else "POST", path, body, headers, timeout_s) as answer:
            yield answer

    @contextmanager
    def _exchange(
        self, method: str, path: str, body: Any, headers: dict[str, str], timeout_s: float | None
    ) -> Iterator[HTTPResponse]:
        from http.client import HTTPException  # noqa: PLC0415 - 33 ms that `stoker --help` does not need

        connection = self._connection(timeout_s)
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            headers = {**headers, "Content-Type": "application/json"}
        try:
            connection.request(method, path, body=content, headers=headers)
            answer = connection.getresponse()
            if answer.status >= 400:
                raise _said(answer)
            yield answer
        except (ConnectionRefusedError, FileNotFoundError) as exc:
            raise NoServer(f"no Stoker answers at {self.url}", mend=_UP) from exc
        except TimeoutError as exc:
            raise NoServer(f"Stoker at {self.url} did not answer in time", mend="look at its own output") from exc
        except (OSError, HTTPException) as exc:
            raise NoServer(f"the connection to {self.url} broke: {exc or type(exc).__name__}", mend=_UP) from exc
        finally:
            connection.close()

    def _connection(self, timeout_s: float | None) -> HTTPConnection:
        from http.client import HTTPConnection  # noqa: PLC0415

        parts = urlsplit(self.url)
        return HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=timeout_s)


def _said(answer: HTTPResponse) -> ServerSaid:
    content = answer.read()
    try:
        error = json.loads(content)["error"]
        return ServerSaid(
            str(error["message"]), said_code=str(error.get("code")), mend=error.get("mend"), details=dict(error)
        )
    except (ValueError, KeyError, TypeError):
        text = content[:500].decode("utf-8", "replace")
        return ServerSaid(f"the server answered {answer.status}: {text}", said_code="internal", mend=None, details={})


def _lines(answer: HTTPResponse) -> Iterator[str]:
    rest = b""
    while chunk := answer.read1(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")
