"""Options that several commands share, and the way from them to the server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from stoker.cli.client import Client

JSON = Annotated[bool, typer.Option("--json", help="Print JSON with stable field names.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the history.")]
ConfigPath = Annotated[
    Path | None, typer.Option("--config", "-c", help="The configuration; default: ./stoker.yaml where there is one.")
]
Environment = Annotated[str | None, typer.Option("--env", help="Lay this entry of `environments:` over the file.")]


def state_dir(ctx: typer.Context) -> Path:
    """Return `--state-dir`, `STOKER_STATE_DIR` or the default."""
    from stoker.ledger.statedir import default_state_dir  # noqa: PLC0415 - kept out of `stoker --help`

    named: Path | None = ctx.find_root().obj
    return (named or default_state_dir(os.environ)).expanduser().absolute()


def client(ctx: typer.Context) -> Client:
    """Return a client for the running server. Raises `NoServer`."""
    return Client.find(state_dir(ctx))


def config_path(given: Path | None) -> Path | None:
    """Return the configuration to read, None for the embedded default."""
    own = Path("stoker.yaml")
    return given if given is not None else own if own.is_file() else None


def deployment_path(name: str, *rest: str) -> str:
    """Return the admin path of a deployment; whatever is in the name stays one segment."""
    return "/".join(["/admin/deployments", quote(name, safe=""), *rest])
