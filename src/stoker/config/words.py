"""The settings' types in users' words: what may stand at a path, and what pydantic complained of. Pure."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from stoker.config.document import Path, Problem
from stoker.config.settings import (
    Settings,
    parse_auto_or_duration_s,
    parse_auto_or_size_bytes,
    parse_duration_s,
    parse_size_bytes,
)

_PARSER_WORDS = {
    parse_duration_s: "a duration such as `30s`, `5m` or a number of seconds",
    parse_auto_or_duration_s: "`auto`, or a duration such as `30s`, `5m` or a number of seconds",
    parse_size_bytes: "a size such as `512MB`, `8GiB` or a number of bytes",
    parse_auto_or_size_bytes: "`auto`, or a size such as `512MB`, `8GiB` or a number of bytes",
}
_PATTERN_WORDS = {
    r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$": "a name of at most 63 letters, digits, `.`, `_` and `-`, "
    "beginning with a letter or digit",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits in lower case, between quotation marks",
}
_HIDDEN = {"secret", "sha256", "env"}  # values below these keys are never repeated in an error
_MAX_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Shape:
    """What may stand at one place: a type with its constraints."""

    annotation: Any
    metadata: tuple[Any, ...] = ()

    @classmethod
    def of(cls, annotation: Any, metadata: Iterable[Any] = ()) -> Shape:
        """Unwrap `Annotated` and `X | None`."""
        found = list(metadata)
        while True:
            if get_origin(annotation) is Annotated:
                annotation, *extra = get_args(annotation)
                found += [part for item in extra for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
            elif get_origin(annotation) in {Union, types.UnionType} and type(None) in get_args(annotation):
                rest = [arg for arg in get_args(annotation) if arg is not type(None)]
                annotation = rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007 - built from values
            else:
                return cls(annotation, tuple(found))

    @property
    def model(self) -> type[BaseModel] | None:
        """The settings class whose keys may stand here, or None."""
        is_model = isinstance(self.annotation, type) and issubclass(self.annotation, BaseModel)
        return self.annotation if is_model else None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that may stand here; empty where any name may, or none."""
        return tuple(self.model.model_fields) if self.model else ()

    def below(self, part: str | int) -> Shape | None:
        """Return the shape one step down, or None when nothing may stand there."""
        if self.model is not None:
            info = self.model.model_fields.get(part) if isinstance(part, str) else None
            return Shape.of(info.annotation, info.metadata) if info else None
        origin, args = get_origin(self.annotation), get_args(self.annotation)
        if origin is dict and isinstance(part, str):
            return Shape.of(args[1])
        if origin is tuple and isinstance(part, int):
            return Shape.of(args[0])
        return None

    def words(self) -> str:
        """Say what is valid here, to follow "must be"."""
        for item in self.metadata:
            if isinstance(item, BeforeValidator) and item.func in _PARSER_WORDS:
                return _PARSER_WORDS[item.func]
            if (pattern := getattr(item, "pattern", None)) in _PATTERN_WORDS:
                return _PATTERN_WORDS[pattern]
        origin, args = get_origin(self.annotation), get_args(self.annotation)
        if origin is Literal:
            return " or ".join(f"`{arg}`" for arg in args) if len(args) < 3 else "one of " + _listed(args)
        if origin in {Union, types.UnionType}:
            return " or ".join(Shape.of(arg).words() for arg in args)
        if origin is tuple:
            return f"a list (`[…]` or lines that begin with `-`), each item {Shape.of(args[0]).words()}"
        if self.model is not None:
            return f"keys and values; valid keys: {', '.join(self.keys)}"
        if origin is dict:
            return "names with a value each"
        if self.annotation is bool:
            return "`true` or `false`"
        bounds = "".join(self._bounds())
        if self.annotation is int:
            return f"a whole number{bounds}"
        if self.annotation is Decimal:
            return f"an amount in dollars{bounds}, such as 0.15"
        if self.annotation is float:
            return f"a number{bounds}"
        return "text, between quotation marks where it looks like a number" if self.annotation is str else "a value"

    def _bounds(self) -> Iterable[str]:
        for item in self.metadata:
            if (least := getattr(item, "ge", None)) is not None:
                yield f" of at least {least}"
            if (most := getattr(item, "le", None)) is not None:
                yield f" and at most {most}"


_ROOT = Shape(Settings)


def shape_at(path: Path) -> Shape | None:
    """Return what may stand at `path`, or None when nothing may."""
    shape: Shape | None = _ROOT
    for part in path:
        shape = shape.below(part) if shape is not None else None
    return shape


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return `; did you mean …?` for the closest of `choices`, or nothing."""
    folded = {choice.lower().replace("-", "_"): choice for choice in choices}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return f"; did you mean `{folded[close[0]]}`?" if close else ""


def unknown_key(parent: Path, key: str) -> Problem:
    """Report a key that may not stand below `parent`, with the nearest one and all that may."""
    shape = shape_at(parent)
    keys = shape.keys if shape else ()
    hint = nearest(key, keys)
    for name in keys if shape and not hint else ():
        inner = shape.below(name) if shape else None
        if inner is not None and key in inner.keys:
            hint = f"; did you mean `{name}.{key}`?"
    end = " " if hint else "; "
    return Problem((*parent, key), f"this key is not known{hint}{end}valid keys: {', '.join(keys)}")


def from_pydantic(error: ValidationError) -> list[Problem]:
    """Translate each of pydantic's complaints about `Settings` into users' words."""
    problems: dict[tuple[Path, str], Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _translate(detail["type"], detail["loc"], detail["msg"], detail.get("input"), detail.get("ctx") or {})
        problems.setdefault((problem.path, problem.text), problem)
    return list(problems.values())


def _translate(kind: str, loc: Path, message: str, value: Any, context: Mapping[str, Any]) -> Problem:
    if kind == "extra_forbidden":
        return unknown_key(loc[:-1], str(loc[-1]))
    if loc and loc[-1] == "[key]":
        return Problem(loc[:-1], f"must be {_PATTERN_WORDS[_NAME_PATTERN]}")
    path: Path = ()
    for part in loc:  # a union adds the names of its branches, which no user knows
        if shape_at((*path, part)) is None:
            break
        path = (*path, part)
    shape = shape_at(path)
    expected = shape.words() if shape else "something else"
    if kind == "missing":
        return Problem(path, f"this is missing; it must be {expected}")
    if kind == "value_error" and shape is not None and shape.model is not None:
        return Problem(path, str(context.get("error", message)))
    return Problem(path, f"must be {expected}{not_value(path, value)}")


def not_value(path: Path, value: Any) -> str:
    """Return `, not <what was written>`, or nothing when that could be a secret."""
    if any(part in _HIDDEN for part in path):
        return ""
    if isinstance(value, Mapping):
        return ", not keys and values"
    if isinstance(value, list | tuple):
        return ", not a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f", not {text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + '…'}"


_NAME_PATTERN = next(iter(_PATTERN_WORDS))


def _listed(args: Iterable[Any]) -> str:
    return ", ".join(f"`{arg}`" for arg in args)
