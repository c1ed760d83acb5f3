"""References to secrets, resolved: `env:NAME`, `file:PATH`, `exec:PROGRAM ARGUMENTS`. Reads files, runs programs.

No error ever holds a secret or what a program printed. Blocking (an `exec:` up to `EXEC_TIMEOUT_S`): call it off the
event loop.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import shutil
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from stoker.clock import Clock, SystemClock
from stoker.config.settings import KeySettings
from stoker.errors import ConfigInvalid

MAX_SECRET_BYTES = 64 * 2**10
EXEC_TIMEOUT_S = 10.0
_CLOCK = SystemClock()
_OTHERS_MAY_READ = stat.S_IRGRP | stat.S_IROTH
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def resolve_key_secrets(
    keys: Sequence[KeySettings], *, environ: Mapping[str, str] | None = None, exec_timeout_s: float = EXEC_TIMEOUT_S
) -> dict[str, str]:
    """Return the secret of each key that has a reference, by the key's name.

    Raises:
        ConfigInvalid: with every reference that cannot be resolved.
    """
    secrets: dict[str, str] = {}
    problems: list[str] = []
    for index, key in enumerate(keys):
        if key.secret is None:
            continue
        try:
            secrets[key.name] = resolve_secret(key.secret, environ=environ, exec_timeout_s=exec_timeout_s)
        except ConfigInvalid as exc:
            problems += [f"keys[{index}].secret ({key.name}): {problem}" for problem in exc.problems]
    if problems:
        raise ConfigInvalid(tuple(problems))
    return secrets


def resolve_secret(
    reference: str, *, environ: Mapping[str, str] | None = None, exec_timeout_s: float = EXEC_TIMEOUT_S
) -> str:
    """Return what a reference stands for, without the newline at its end.

    Args:
        environ: where `env:` looks and what `exec:` inherits; the process's own by default.

    Raises:
        ConfigInvalid: what is wrong with it, never what it holds.
    """
    environ = os.environ if environ is None else environ
    kind, _, rest = reference.partition(":")
    if kind == "env":
        if not (secret := environ.get(rest, "").strip()):
            raise _refused(f"the environment variable {rest} is not set or empty")
        return secret
    if kind == "file":
        return _text(_file(Path(rest).expanduser()), rest)
    if kind == "exec":
        return _exec(rest, environ, exec_timeout_s)
    raise _refused("write env:NAME, file:PATH or exec:PROGRAM")


def _refused(problem: str) -> ConfigInvalid:
    return ConfigInvalid((problem,))


def _text(content: bytes, where: str) -> str:
    if len(content) > MAX_SECRET_BYTES:
        raise _refused(f"{where} gives more than {MAX_SECRET_BYTES // 1024} KiB, which no key is")
    try:
        secret = content.decode().strip("\r\n")
    except UnicodeDecodeError:
        raise _refused(f"{where} gives something that is not text") from None
    if not secret.strip() or "\n" in secret or "\0" in secret:
        raise _refused(f"{where} must give one line that is not empty")
    return secret


def _check_owner(found: os.stat_result, path: Path, forbidden: int, mend: str) -> None:
    """Check on the open file, so that nobody can change what is checked for something else."""
    if not stat.S_ISREG(found.st_mode):
        raise _refused(f"{path} is not a plain file")
    if found.st_uid not in {os.geteuid(), 0}:
        raise _refused(
            f"{path} belongs to user {found.st_uid}; it must belong to the user that runs Stoker, or to root"
        )
    if found.st_mode & forbidden:
        raise _refused(f"{path} has mode {stat.S_IMODE(found.st_mode):04o}; {mend}")


def _file(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise _refused(f"{path} cannot be read: {exc.strerror}") from exc
    with open(descriptor, "rb") as file:
        others = _OTHERS_MAY_READ | _OTHERS_MAY_WRITE
        _check_owner(os.fstat(descriptor), path, others, f"others can read it: run `chmod 600 {path}`")
        return file.read(MAX_SECRET_BYTES + 1)


def _exec(line: str, environ: Mapping[str, str], timeout_s: float) -> str:
    try:
        argv = shlex.split(line)
    except ValueError as exc:
        raise _refused(f"exec: cannot be split into arguments: {exc}") from exc
    if not argv:
        raise _refused("exec: names no program")
    found = shutil.which(os.path.expanduser(argv[0]), path=environ.get("PATH", os.defpath))
    if found is None:
        raise _refused(f"exec: the program {argv[0]} is not there or cannot be run")
    program = Path(found).resolve()
    mend = f"others can change it: run `chmod go-w {program}`"
    _check_owner(program.stat(), program, _OTHERS_MAY_WRITE, mend)
    return _text(_output([str(program), *argv[1:]], environ, timeout_s), f"exec: {argv[0]}")


def _output(argv: list[str], environ: Mapping[str, str], timeout_s: float, clock: Clock = _CLOCK) -> bytes:
    """Run a program in a group of its own and return its output, bounded in time and size."""
    name = Path(argv[0]).name
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
            start_new_session=True,
        )
    except OSError as exc:
        raise _refused(f"exec: {name} cannot be run: {exc.strerror}") from exc
    assert process.stdout is not None
    deadline_s = clock.monotonic_s() + timeout_s
    content = bytearray()
    try:
        with process.stdout as pipe, selectors.DefaultSelector() as selector:
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ)
            while len(content) <= MAX_SECRET_BYTES:
                if not selector.select(max(0.0, deadline_s - clock.monotonic_s())):
                    raise _refused(f"exec: {name} did not end within {timeout_s:g} s")
                if not (chunk := os.read(pipe.fileno(), MAX_SECRET_BYTES)):
                    break
                content += chunk
        if len(content) > MAX_SECRET_BYTES:
            return bytes(content)
        try:
            status = process.wait(max(0.0, deadline_s - clock.monotonic_s()))
        except subprocess.TimeoutExpired:
            raise _refused(f"exec: {name} did not end within {timeout_s:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if status != 0:
        raise _refused(f"exec: {name} ended with status {status}")
    return bytes(content)
