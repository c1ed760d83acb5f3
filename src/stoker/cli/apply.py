"""`stoker apply`: the three-way step from what runs to what the file says."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stoker.cli import options
from stoker.cli.client import LONG_TIMEOUT_S
from stoker.cli.configuration import dotted, shown
from stoker.cli.terminal import FAILED, note, print_json, print_table, say
from stoker.errors import BadRequest


def apply(
    ctx: typer.Context,
    keep: Annotated[bool, typer.Option("--keep", help="Where both changed, the runtime change wins.")] = False,
    discard: Annotated[bool, typer.Option("--discard", help="End all runtime changes; the file alone holds.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen.")] = False,
    reason: options.Reason = "",
    as_json: options.JSON = False,
) -> None:
    """Read the configuration file again; refuses where it and runtime changes disagree."""
    if keep and discard:
        raise BadRequest("--keep and --discard exclude each other")
    client = options.client(ctx)
    mode = "keep" if keep else "discard" if discard else None
    # The plan is shown, and a refusal reported, before anything changes; the server checks again when it acts.
    plan = client.send("POST", "/admin/apply", {"mode": mode, "dry_run": True}, timeout_s=LONG_TIMEOUT_S).body
    if not as_json:
        _show(plan)
    if plan["is_refused"]:
        if as_json:
            print_json(plan)
        note("refused: --keep lets runtime changes win, --discard ends all of them; nothing was changed")
        raise typer.Exit(FAILED)
    if not dry_run:
        body = {"mode": mode, "dry_run": False, "reason": reason}
        plan = client.send("POST", "/admin/apply", body, timeout_s=LONG_TIMEOUT_S).body
    if as_json:
        print_json(plan)
    elif dry_run:
        say("dry run: nothing was changed")
    else:
        say("applied")


def _show(plan: dict[str, Any]) -> None:
    if plan["conflicts"]:
        print_table(
            ("CONFLICT", "APPLIED LAST", "FILE NOW", "RUNS"),
            ((dotted(c["path"]), shown(c["base"]), shown(c["file"]), shown(c["live"])) for c in plan["conflicts"]),
            empty="",
        )
    print_table(
        ("CHANGE", "RUNS", "AFTERWARDS"),
        ((dotted(c["path"]), shown(c["before"]), shown(c["after"])) for c in plan["changes"]),
        empty="nothing to change: what runs is what would run afterwards",
    )
    for name in plan["dropped"]:
        say(f"the runtime change of {name} ends")
    for name in plan["kept"]:
        say(f"the runtime change of {name} stays")
    for change in plan["at_next_start"]:
        say(f"{dotted(change['path'])} takes effect at the next `stoker up`")
