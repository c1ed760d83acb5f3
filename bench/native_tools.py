"""The compiled load generator and stand-in upstream. Touches the C compiler, processes, sockets and `.bench/`."""

from __future__ import annotations

import array
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.machine import SCRATCH
from bench.processes import Child, pinned

_SOURCES = Path(__file__).with_name("native")
_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
_START_S = 5.0
_LOAD_GRACE_S = 60.0  # beyond a run's own bound, and above the generator's own 30 s without a byte


class NoCompilerError(Exception):
    """No C compiler on PATH; the message holds the line to type."""


class LoadFailedError(Exception):
    """The load generator or the stand-in did not do its work; the message says what it said."""


def compiler() -> str:
    """The C compiler to use.

    Raises:
        NoCompilerError: when there is none.
    """
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return name
    raise NoCompilerError(
        "the benchmarks' load generator is written in C and needs a compiler. On Debian, type:\n"
        "  apt-get install -y gcc libc6-dev"
    )


def build(name: str) -> Path:
    """Compile `native/NAME.c` once for each version of its source; the path of the program.

    Raises:
        NoCompilerError: without a compiler.
        LoadFailedError: when the compiler refuses; the message holds its words.
    """
    cc = compiler()
    digest = hashlib.sha256(" ".join((cc, *_FLAGS)).encode())
    for source in (_SOURCES / f"{name}.c", _SOURCES / "http.h"):
        digest.update(source.read_bytes())
    program = SCRATCH / "native" / f"{name}-{digest.hexdigest()[:16]}"
    if program.exists():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_suffix(f".{os.getpid()}")
    made = subprocess.run(
        [cc, *_FLAGS, "-o", str(unfinished), str(_SOURCES / f"{name}.c")], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise LoadFailedError(f"{cc} refused native/{name}.c:\n{made.stderr}")
    unfinished.replace(program)  # two builds at once: the last one wins, and both are the same
    return program


class Upstream:
    """The stand-in engine on a loopback port of its own choice, or on a UNIX socket.

    Args:
        delay_s: between a request and the first byte of its answer.
        interval_s: between the chunks of a stream.
        core: the core to run on; None means any.
    """

    def __init__(
        self,
        *,
        delay_s: float = 0.0,
        num_chunks: int = 20,
        interval_s: float = 0.0,
        socket_path: Path | None = None,
        core: int | None = None,
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="stb-", dir="/tmp"))
        where = ["--socket", str(socket_path)] if socket_path else ["--port", "0"]
        self._command = [
            *pinned(core), str(build("upstream")), *where, "--delay-us", str(delay_s * 1e6),
            "--chunks", str(num_chunks), "--interval-us", str(interval_s * 1e6),
        ]  # fmt: skip
        self.socket_path = socket_path
        self.port = 0
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def target(self) -> tuple[str, ...]:
        """The words that point the load generator here."""
        return ("--socket", str(self.socket_path)) if self.socket_path else ("--port", str(self.port))

    def __enter__(self) -> Upstream:
        self._child = Child(self._command, output=self._folder / "out")
        deadline_s = time.monotonic() + _START_S
        while not (said := self._child.said()).startswith("listening "):
            if not self._child.is_alive() or time.monotonic() > deadline_s:
                self._child.stop()
                raise LoadFailedError(f"the stand-in upstream did not start: {said}")
            time.sleep(0.005)
        self.port = int(said.split()[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of the load generator asks.

    Attributes:
        connections: kept alive, one request at a time on each.
        rate_per_s: None is the closed loop: the next request follows each answer.
        num_requests: at most so many measured ones, after `num_warmup` unmeasured ones.
        duration_s: no request starts later than this.
    """

    body: Mapping[str, Any]
    connections: int = 1
    rate_per_s: float | None = None
    num_requests: int = 1_000_000
    num_warmup: int = 0
    duration_s: float = 2.0
    path: str = "/v1/chat/completions"
    headers: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came back: the generator's own report, and each measured request's times in milliseconds."""

    report: Mapping[str, Any]
    latencies_ms: Sequence[float] = field(repr=False)
    first_bytes_ms: Sequence[float] = field(repr=False)

    @property
    def requests_per_s(self) -> float:
        return float(self.report["requests_per_s"])


def run_load(load: Load, target: Sequence[str], *, core: int | None = None) -> LoadResult:
    """Run the load to its end.

    Args:
        target: `--port N` or `--socket PATH`.

    Raises:
        LoadFailedError: when it could not run, or any answer was wrong: figures of a failing server mean nothing.
    """
    program = build("load")
    with tempfile.TemporaryDirectory(prefix="stb-", dir="/tmp") as folder:
        body, samples = Path(folder, "body.json"), Path(folder, "samples")
        body.write_text(json.dumps(load.body))
        command = [
            *pinned(core), str(program), *target, "--path", load.path, "--body", str(body), "--samples", str(samples),
            "--connections", str(load.connections), "--requests", str(load.num_requests),
            "--warmup", str(load.num_warmup), "--duration-s", str(load.duration_s),
        ]  # fmt: skip
        if load.rate_per_s is not None:
            command += ["--rate", str(load.rate_per_s)]
        for header in load.headers:
            command += ["--header", header]
        try:
            ran = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=load.duration_s + _LOAD_GRACE_S
            )
        except subprocess.TimeoutExpired as error:
            raise LoadFailedError("the load generator did not end") from error
        if ran.returncode:
            raise LoadFailedError(f"the load generator failed: {ran.stderr.strip()}")
        report = json.loads(ran.stdout)
        if report["errors"] or not report["n"]:
            raise LoadFailedError(
                f"{report['errors']} of {report['finished']} answers were wrong, first: {report['first_error']}"
            )
        pairs = array.array("I")
        pairs.frombytes(samples.read_bytes())
    return LoadResult(report, [v / 1e4 for v in pairs[0::2]], [v / 1e4 for v in pairs[1::2]])
