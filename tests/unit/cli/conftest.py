"""The command line against the real `/admin`, over a loopback socket, with a fleet that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from stoker.cli.main import app
from stoker.testing.operator import Operator

FILE = """
deployments:
  chat: {model: smollm2-135m, max_replicas: 4}
"""


@dataclass
class Server:
    """A server that `stoker` finds by its state directory.

    Attributes:
        v1: path → (status, headers, body) that `/v1` answers with.
        asked: (method, path, headers, body) of everything that arrived.
    """

    operator: Operator
    state_dir: Path
    url: str = ""
    v1: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def run(self, *arguments: str, input: str | None = None) -> Result:
        """Run `stoker …` against this server."""
        return CliRunner().invoke(app, ["--state-dir", str(self.state_dir), *arguments], input=input)

    def json(self, *arguments: str) -> Any:
        """Run `stoker … --json` and return what it printed."""
        result = self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def on_loop(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    operator = Operator(FILE)
    on_loop(operator.start())
    transport = httpx.ASGITransport(operator.app(), raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
    found = Server(operator, tmp_path)

    class Bridge(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.asked.append((self.command, self.path, dict(self.headers), body))
            if self.path in found.v1:
                status, headers, content = found.v1[self.path]
            else:
                sent = {k: v for k, v in self.headers.items() if k.lower() not in {"host", "content-length"}}
                answer = on_loop(client.request(self.command, self.path, content=body, headers=sent))
                status, headers, content = answer.status_code, dict(answer.headers), answer.content
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() != "content-length":
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Bridge)
    serving = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    serving.start()
    found.url = f"http://127.0.0.1:{http.server_port}"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.json").write_text(json.dumps({"url": found.url, "pid": 1}))
    (tmp_path / "admin-token").write_text("token\n")
    yield found
    http.shutdown()
    http.server_close()
    serving.join()
    on_loop(client.aclose())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def sse() -> Callable[..., bytes]:
    """Write events as a stream; the last argument `done=False` leaves out its end."""

    def write(*events: dict[str, Any], done: bool = True) -> bytes:
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        return (text + ("data: [DONE]\n\n" if done else "")).encode()

    return write


@pytest.fixture(autouse=True)
def _no_keys_of_the_person_who_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STOKER_API_KEY", "OPENAI_API_KEY", "STOKER_STATE_DIR"):
        with contextlib.suppress(KeyError):
            monkeypatch.delenv(name)
