"""YAML text → plain values with the line of every key, duplicates and odd tags reported. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_MAX_NODES = 100_000  # a configuration has hundreds; aliases of aliases reach billions ("billion laughs")
_MAX_DEPTH = 40


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: keys and list positions from the top of the file; empty for the file as a whole.
        text: what is wrong and what would be valid, without the path.
        line: counted from 1; None when there is no file or no such line.
    """

    path: Path
    text: str
    line: int | None = None

    def sentence(self, file: str | None) -> str:
        """Write `stoker.yaml:12: deployments.chat.model: …`, leaving out what is not known."""
        where = ":".join(str(part) for part in (file, self.line) if part is not None) if file else ""
        return ": ".join(part for part in (where, dotted(self.path), self.text) if part)


@dataclass(slots=True)
class Document:
    """A file's plain value and where each part of it stands.

    Attributes:
        value: only dict, list, str, int, float and bool. A key with nothing (or `null`) after it counts as not
            written, which is what lets an overlay take a key away.
        lines: line, from 1, of each key and list item.
        removed: paths that the text sets to nothing.
    """

    value: dict[str, Any] = field(default_factory=dict)
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)

    def line_of(self, path: Path) -> int | None:
        """Return the line of `path` or of its nearest ancestor that is in the file."""
        for end in range(len(path), 0, -1):
            if (line := self.lines.get(path[:end])) is not None:
                return line
        return None


def dotted(path: Path) -> str:
    """Write a path as users do: `deployments.chat.engine.args`, `keys[0].name`; odd names are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part and all(char.isalnum() or char in "_-" for char in part):
            text += f".{part}" if text else part
        else:
            text += f'."{part}"' if text else f'"{part}"'
    return text


def read_document(text: str) -> Document:
    """Read YAML text; what cannot be read is in `problems`, and everything else is still in `value`."""
    reader = _Reader()
    try:
        node = YAML().compose(text)
    except MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        begun = f" begun in line {exc.context_mark.line + 1}:" if exc.context and exc.context_mark else ""
        saying = " ".join(part for part in (f"{exc.context}{begun}" if exc.context else "", exc.problem) if part)
        reader.document.problems.append(
            Problem((), f"this is not valid YAML: {saying}", mark.line + 1 if mark else None)
        )
        return reader.document
    except (YAMLError, RecursionError, ValueError) as exc:
        saying = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        reader.document.problems.append(Problem((), f"this is not valid YAML: {saying}"))
        return reader.document
    if node is not None:
        value = reader.read(node, (), 0)
        if isinstance(value, dict):
            reader.document.value = value
        elif value is not None:
            problem = Problem(
                (), "the file must hold keys and values, such as `deployments:`", node.start_mark.line + 1
            )
            reader.document.problems.append(problem)
    return reader.document


class _Reader:
    def __init__(self) -> None:
        self.document = Document()
        self._num_nodes = 0

    def read(self, node: Node, path: Path, depth: int) -> Any:
        self._num_nodes += 1
        if depth > _MAX_DEPTH or self._num_nodes > _MAX_NODES:
            if not any(problem.text.startswith("too deep") for problem in self.document.problems):
                self._report(node, path, f"too deep or too large (at most {_MAX_DEPTH} levels, {_MAX_NODES} values)")
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode):
            return self._sequence(node, path, depth)
        assert isinstance(node, ScalarNode)
        return self._scalar(node, path)

    def _report(self, node: Node, path: Path, text: str) -> None:
        self.document.problems.append(Problem(path, text, node.start_mark.line + 1))

    def _mapping(self, node: MappingNode, path: Path, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                for source in value_node.value if isinstance(value_node, SequenceNode) else [value_node]:
                    value = self.read(source, path, depth + 1)
                    if isinstance(value, dict):
                        merged = {**value, **merged}
                    else:
                        self._report(key_node, path, "`<<` needs an alias of a mapping")
                continue
            if not isinstance(key_node, ScalarNode):
                self._report(key_node, path, "a key must be plain text")
                continue
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in first_lines:
                text = f"this key is already given in line {first_lines[key]}; keep one of the two"
                self.document.problems.append(Problem((*path, key), text, line))
                continue
            first_lines[key] = self.document.lines[*path, key] = line
            if (value := self.read(value_node, (*path, key), depth + 1)) is None:
                self.document.removed.append((*path, key))
            own[key] = value
        return {key: value for key, value in {**merged, **own}.items() if value is not None}

    def _sequence(self, node: SequenceNode, path: Path, depth: int) -> list[Any]:
        values = []
        for index, item in enumerate(node.value):
            self.document.lines[*path, index] = item.start_mark.line + 1
            values.append(self.read(item, (*path, index), depth + 1))
        return values

    def _scalar(self, node: ScalarNode, path: Path) -> str | int | float | bool | None:
        tag, text = str(node.tag), str(node.value)
        if tag == f"{_TAG}null":
            return None
        if tag == f"{_TAG}bool":
            return text.lower() == "true"
        try:
            if tag == f"{_TAG}int":
                return int(text.replace("_", ""), 0 if text.lstrip("+-")[:2] in {"0x", "0o"} else 10)
            if tag == f"{_TAG}float":
                return float(text.replace("_", ""))
        except ValueError:  # `.inf`, `.nan` and numbers of other YAML versions are text to us
            return text
        if tag not in {f"{_TAG}str", f"{_TAG}timestamp"}:
            self._report(node, path, f"the tag {tag} is not known here; write plain text, numbers, true or false")
        return text


def walk(value: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every value below `value` with its path, parents first."""
    for key, item in value.items():
        yield from _walk((*path, key), item)


def _walk(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    yield path, value
    if isinstance(value, Mapping):
        yield from walk(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk((*path, index), item)
