"""How Stoker speaks to a terminal: cleaned text, tables, JSON, errors and exit codes. Writes to stdout and stderr.

Exit codes: 0 done, 1 failed, 2 bad input or configuration, 3 no server to talk to.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Final

from stoker.errors import StokerError

FAILED: Final = 1
BAD_INPUT: Final = 2
NO_SERVER: Final = 3

_BAD_INPUT_CODES = frozenset(
    {"bad_request", "config_invalid", "body_too_large", "context_length_exceeded", "unsupported_media_type"}
)
# Marks that reorder or hide what follows, so that a name could pass for another one.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_PIPE_COLUMNS = 200


class NoServer(StokerError):
    code = "no_server"


def exit_code(error: StokerError) -> int:
    """Return the exit code for an error. Pure."""
    if error.code == NoServer.code:
        return NO_SERVER
    return BAD_INPUT if error.code in _BAD_INPUT_CODES else FAILED


def clean(value: object, *, keep_lines: bool = False) -> str:
    """Return text that cannot steer a terminal: no control, escape or reordering characters. Pure.

    Names, logs and model output come from others; an escape sequence in them could rewrite the screen or worse.

    Args:
        keep_lines: leave line ends and tabs as they are; else each becomes a space.
    """
    kept: list[str] = []
    for character in str(value):
        if character in "\n\t":
            kept.append(character if keep_lines else " ")
        elif unicodedata.category(character) not in {"Cc", "Cs"} and character not in _REORDERING:
            kept.append(character)
    return "".join(kept)


def say(text: str) -> None:
    """Print trusted words with cleaned values in them, as they are, to stdout."""
    print(clean(text, keep_lines=True))


def note(text: str) -> None:
    """Print to stderr: progress and asides that a pipe must not see."""
    print(clean(text, keep_lines=True), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print JSON; characters outside ASCII are escaped, control characters among them."""
    print(json.dumps(value, indent=2))


def print_error(error: StokerError) -> None:
    """Print what is wrong and what helps, to stderr."""
    note(f"error: {error.message}")
    if error.mend:
        note(f"  try: {error.mend}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table, or the words `empty` when there are no rows.

    Args:
        columns: headings; one that ends in `>` is aligned to the right.
    """
    from rich import box  # noqa: PLC0415 - 70 ms that only tables need
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    body = [[Text(clean(cell)) for cell in row] for row in rows]
    if not body:
        say(empty)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        is_right = column.endswith(">")
        table.add_column(column.removesuffix(">"), justify="right" if is_right else "left", overflow="fold")
    for cells in body:
        table.add_row(*cells)
    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)


def size(num_bytes: float | None) -> str:
    """Write bytes for people: `1.4 GiB`; `–` for None. Pure."""
    if num_bytes is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit in {"B", "KiB"} else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def seconds(value: float | None) -> str:
    """Write a time for people: `40 ms`, `3.2 s`, `5 m 10 s`, `2 h 3 m`; `–` for None. Pure."""
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} m {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m"
