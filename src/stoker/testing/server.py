"""A real Stoker as a child process, for acceptance tests and benchmarks. Touches processes, sockets and files."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_POLL_S = 0.02


def free_port() -> int:
    """Return a loopback TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, read to its end.

    Attributes:
        is_whole: False when the connection ended before the answer did.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool = True

    def json(self) -> Any:
        return json.loads(self.body)


class RunningStoker:
    """`stoker up` with a configuration and a state directory of its own.

    Args:
        config: YAML text; None means the embedded default.
        state_dir: kept when given (to start a second server on it), else a temporary one that is removed at the end.
        environment: laid over the process's own environment.
    """

    def __init__(
        self,
        config: str | None = None,
        *,
        state_dir: Path | None = None,
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        command_prefix: tuple[str, ...] = (),
    ) -> None:
        self._owns_state_dir = state_dir is None
        # Short, because UNIX socket paths under it may have 107 characters at most.
        self.state_dir = state_dir or Path(tempfile.mkdtemp(prefix="stk-"))
        self.port = free_port()
        self._config = config
        self._arguments = arguments
        self._environment = environment or {}
        self._command_prefix = command_prefix
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def config_path(self) -> Path:
        return self.state_dir / "stoker.yaml"

    @property
    def admin_token(self) -> str:
        return (self.state_dir / "admin-token").read_text().strip()

    def start(self, *, wait_s: float = 60.0, config: str | None = None) -> RunningStoker:
        """Start the server and wait until it answers `/health`.

        Args:
            config: YAML text in place of the one that it was made with, as after an edit.

        Raises:
            RuntimeError: it exited, or did not answer in time; the message holds its output.
        """
        command = [
            *self._command_prefix, sys.executable, "-m", "stoker", "up",
            "--port", str(self.port), "--state-dir", str(self.state_dir), *self._arguments,
        ]  # fmt: skip
        self._config = self._config if config is None else config
        if self._config is not None:
            self.config_path.write_text(self._config)
            command += ["--config", str(self.config_path)]
        with self.output_path.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"stoker exited with {self.process.returncode}:\n{self.output}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.request("GET", "/health", timeout_s=1.0).status == 200:
                    return self
            time.sleep(_POLL_S)
        raise RuntimeError(f"stoker did not answer within {wait_s:.0f} s:\n{self.output}")

    @property
    def output_path(self) -> Path:
        return self.state_dir / "up.out"

    @property
    def output(self) -> str:
        return self.output_path.read_text(errors="replace")

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        timeout_s: float = 120.0,
    ) -> Answer:
        """Send one request and read the whole answer; `body` is sent as JSON unless it is bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            wanted = {"Content-Type": "application/json"} if content is not None else {}
            connection.request(method, path, body=content, headers={**wanted, **(headers or {})})
            answer = connection.getresponse()
            received = {k.lower(): v for k, v in answer.getheaders()}
            try:
                return Answer(answer.status, received, answer.read())
            except http.client.IncompleteRead as cut:
                return Answer(answer.status, received, cut.partial, is_whole=False)
        finally:
            connection.close()

    def admin(self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None) -> Answer:
        """Send one request to `/admin` with the admin token."""
        return self.request(
            method, path, body, headers={"Authorization": f"Bearer {self.admin_token}", **(headers or {})}
        )

    def chat(self, model: str, text: str = "Say hello.", **fields: Any) -> Answer:
        """Ask one chat completion, greedy unless told otherwise."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
        return self.request("POST", "/v1/chat/completions", body)

    def replicas(self) -> list[dict[str, Any]]:
        """Return what `stoker ps` shows."""
        listed: list[dict[str, Any]] = self.admin("GET", "/admin/replicas").json()["replicas"]
        return listed

    def stop(self, *, wait_s: float = 30.0) -> int:
        """Drain and stop; kill when that takes longer than `wait_s`. Returns the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(wait_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def kill(self) -> None:
        """End the server as a crash would: SIGKILL, no good-byes."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> RunningStoker:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.stop()
        if self._owns_state_dir:
            shutil.rmtree(self.state_dir, ignore_errors=True)
