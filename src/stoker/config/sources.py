"""Where weights come from: the four kinds of model source, parsed. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

VALID_SOURCES = (
    "hf://owner/repository/path/file.gguf[@revision], https://host/path, file:///path, "
    "or package://distribution==version/path/in/the/package"
)

_SEGMENT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_DISTRIBUTION = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$")
_VERSION = re.compile(r"^[0-9][A-Za-z0-9.!+_-]*$")


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed source.

    Attributes:
        text: as written, which is also its identity.
        url: `https`: what to get; for `hf` the address of the file at the revision.
        owner, repository, revision: `hf` only. `path` is empty when the whole repository is meant, which an engine
            that loads its own weights takes and the model store does not.
        distribution, version: `package` only.
        path: `file`: absolute path (`~` unexpanded); `hf` and `package`: the file inside.
    """

    kind: Literal["hf", "https", "file", "package"]
    text: str
    url: str | None = None
    owner: str | None = None
    repository: str | None = None
    revision: str = "main"
    distribution: str | None = None
    version: str | None = None
    path: str = ""

    @property
    def file_name(self) -> str:
        """The last part of the path, for people and for telling the format."""
        return PurePosixPath(unquote(urlsplit(self.url).path) if self.kind == "https" else self.path).name


def parse_source(text: str) -> Source:
    """Parse a model's `source`.

    Raises:
        ValueError: in words for the person who wrote it.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or any(char.isspace() or ord(char) < 32 for char in text):
        raise ValueError(f"{text!r} is not a model source; write {VALID_SOURCES}")
    if scheme == "hf":
        return _hub(text, rest)
    if scheme in {"https", "http"}:
        return _web(text)
    if scheme == "file":
        return _file(text, rest)
    if scheme == "package":
        return _package(text, rest)
    raise ValueError(f"{scheme}:// is not a kind of model source; write {VALID_SOURCES}")


def _is_inside(path: str) -> bool:
    return bool(path) and all(part not in {"", ".", ".."} for part in path.split("/")) and "\\" not in path


def _hub(text: str, rest: str) -> Source:
    location, at, revision = rest.partition("@")
    if at and not _is_inside(revision):
        raise ValueError(f"{text!r}: `@` must be followed by a branch, tag or commit")
    parts = location.rstrip("/").split("/", 2)
    if len(parts) < 2 or not all(_SEGMENT.match(part) for part in parts[:2]):
        raise ValueError(f"{text!r}: write hf://owner/repository/path/file.gguf, with `@revision` if you like")
    owner, repository, path = parts[0], parts[1], parts[2] if len(parts) == 3 else ""
    if path and not _is_inside(path):
        raise ValueError(f"{text!r}: the path must stay inside the repository")
    url = f"https://huggingface.co/{owner}/{repository}/resolve/{revision or 'main'}/{path}" if path else None
    return Source(
        "hf", text, url=url, owner=owner, repository=repository, revision=revision or "main", path=path
    )  # fmt: skip


def _web(text: str) -> Source:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as exc:
        raise ValueError(f"{text!r}: {exc}") from exc
    if not parts.hostname:
        raise ValueError(f"{text!r} names no host")
    if parts.username or parts.password:
        raise ValueError("a source must not hold a user name or a password; the file is read by many")
    if not parts.path.strip("/"):
        raise ValueError(f"{text!r} names no file on the host")
    return Source("https", text, url=text)


def _file(text: str, rest: str) -> Source:
    path = unquote(rest)
    if not path.startswith(("/", "~/")):
        raise ValueError(
            f"{text!r}: write an absolute path, such as file:///srv/models/chat.gguf or file://~/chat.gguf"
        )
    return Source("file", text, path=path)


def _package(text: str, rest: str) -> Source:
    requirement, _, path = rest.partition("/")
    distribution, equals, version = requirement.partition("==")
    if not equals or not _DISTRIBUTION.match(distribution) or not _VERSION.match(version):
        raise ValueError(f"{text!r}: write package://distribution==version/path, with the exact version")
    if not _is_inside(path):
        raise ValueError(f"{text!r}: name one file inside the package, such as package://dist==1.0/dist/weights.gguf")
    return Source("package", text, distribution=distribution, version=version, path=path)
