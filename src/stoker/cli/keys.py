"""`stoker keys create|list|revoke`: client keys, kept as hashes."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from stoker.cli import options
from stoker.cli.terminal import note, print_json, print_table, say

app = typer.Typer(help="Client keys for /v1.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(
    ctx: typer.Context,
    name: str,
    tenant: Annotated[str, typer.Option(help="Whose content it is.")] = "default",
    deployment: Annotated[list[str] | None, typer.Option(help="What it may use; repeatable; default: all.")] = None,
    as_json: options.JSON = False,
) -> None:
    """Create a key. Its secret is shown once and not kept."""
    body = {"name": name, "tenant": tenant, "deployments": deployment or []}
    key = options.client(ctx).send("POST", "/admin/keys", body).body
    if as_json:
        print_json(key)
        return
    say(key["secret"])
    note(f"{key['key_id']} ({key['name']}, tenant {key['tenant']}): keep the secret, it is not shown again")


@app.command("list")
def list_(ctx: typer.Context, as_json: options.JSON = False) -> None:
    """List keys: those of the file, those made here, and `local` where any key is accepted."""
    found = options.client(ctx).get("/admin/keys")
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "NAME", "TENANT", "SECRET", "DEPLOYMENTS", "FROM", "CREATED", "REVOKED"),
        (
            (
                key["key_id"],
                key["name"],
                key["tenant"],
                key["hint"] or "–",
                ", ".join(key["deployments"]) or "all",
                key["origin"],
                key["created_at"] or "–",
                key["revoked_at"] or "–",
            )
            for key in found["keys"]
        ),
        empty="no keys",
    )


@app.command()
def revoke(ctx: typer.Context, key_id: str) -> None:
    """Revoke a key; from now on it is refused."""
    options.client(ctx).send("DELETE", f"/admin/keys/{quote(key_id, safe='')}")
    say(f"{key_id} is revoked")
