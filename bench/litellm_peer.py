"""LiteLLM's proxy in an environment of its own under `.bench/`, in front of the same stand-in upstream. Touches pip,
processes, sockets and `.bench/`."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from bench.machine import SCRATCH
from bench.processes import Child, dying_with_us, naming, pinned
from stoker.testing.server import free_port

# Releases 1.82.7, 1.82.8 and 1.107.0 were published by thieves; this one lies well before the last of them. Source:
# the project's security notices of March and October 2026. Change it on purpose only.
VERSION = "1.102.4"
KEY = "sk-bench-litellm"
_START_S = 120.0
_POLL_S = 0.1


class PeerFailedError(Exception):
    """The peer could not be installed or started; the message says what it said."""


def _python() -> Path:
    return SCRATCH / f"litellm-{VERSION}" / "bin" / "python"


def install() -> Path:
    """Make the environment unless it is there; the directory of its programs.

    Wheels only, so that nothing but the installer runs at install time.

    Raises:
        PeerFailedError: when the environment cannot be made.
    """
    python, stamp = _python(), _python().parent.parent / ".installed"
    if not stamp.exists():
        shutil.rmtree(python.parent.parent, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", str(python.parent.parent)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:",
             f"litellm[proxy]=={VERSION}"],
        ):  # fmt: skip
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                raise PeerFailedError(f"{' '.join(command)} failed:\n{made.stderr.strip()[-2000:]}")
        stamp.touch()
    return python.parent


class LiteLlm:
    """A running proxy with one worker, a master key and no database.

    Args:
        upstreams: model name → base URL of a stand-in upstream.
    """

    def __init__(self, upstreams: Mapping[str, str], *, core: int | None = None) -> None:
        self.headers = (f"Authorization: Bearer {KEY}",)
        self._upstreams = upstreams
        self._core = core
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="stb-litellm-"))
        self._child: Child | None = None
        self.started_in_s = 0.0

    @property
    def target(self) -> tuple[str, ...]:
        return ("--port", str(self.port))

    def pids(self) -> list[int]:
        """Its processes."""
        return list(naming(str(self._folder)))

    def _environment(self) -> dict[str, str]:
        # A home of its own and none of the caller's variables: the peer has no business with either.
        return {
            "PATH": f"{_python().parent}:{os.environ.get('PATH', '')}",
            "HOME": str(self._folder),
            "LANG": "C.UTF-8",
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }

    def __enter__(self) -> LiteLlm:
        programs = install()
        provider = {"model": "openai/stand-in", "api_key": "none"}
        served = [
            {"model_name": name, "litellm_params": {**provider, "api_base": f"{url}/v1"}}
            for name, url in self._upstreams.items()
        ]
        config = {
            "model_list": served,
            "general_settings": {"master_key": KEY},
            "litellm_settings": {"telemetry": False},
        }
        config_path = self._folder / "config.yaml"
        config_path.write_text(json.dumps(config))  # JSON is YAML
        self._child = Child(
            [*dying_with_us(), *pinned(self._core), str(programs / "litellm"), "--config", str(config_path),
             "--host", "127.0.0.1", "--port", str(self.port), "--num_workers", "1"],
            output=self._folder / "out",
            environment=self._environment(),
            directory=self._folder,
        )  # fmt: skip
        while not self._is_ready():
            if not self._child.is_alive() or time.monotonic() > self._child.started_s + _START_S:
                said = self._child.said()
                self.__exit__(None, None, None)
                raise PeerFailedError(f"LiteLLM did not start:\n{said}")
            time.sleep(_POLL_S)
        self.started_in_s = time.monotonic() - self._child.started_s
        return self

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
        try:
            connection.request("GET", "/health/liveliness")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
