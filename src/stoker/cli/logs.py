"""`stoker logs`: what the engines of a replica or deployment wrote."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from stoker.cli import options
from stoker.cli.terminal import say


def logs(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A replica or a deployment.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is added, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 200,
) -> None:
    """Show the log of a replica, or of all replicas of a deployment."""
    query = f"lines={lines}" + ("&follow=true" if follow else "")
    try:
        for line in options.client(ctx).lines(f"/admin/logs/{quote(name, safe='')}?{query}"):
            say(line)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
