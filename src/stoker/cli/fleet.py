"""`stoker status`, `ps`, `move`, `scale` and `delete`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from stoker.cli import options
from stoker.cli.client import LONG_TIMEOUT_S, Client
from stoker.cli.terminal import print_json, print_table, say, seconds, size


class Tier(StrEnum):
    """The two tiers."""

    SERVERLESS = "serverless"
    DEDICATED = "dedicated"


def status(ctx: typer.Context, as_json: options.JSON = False) -> None:
    """Show the server, its node and its deployments."""
    client = options.client(ctx)
    found = client.get("/admin/status")
    if as_json:
        print_json({"url": client.url, **found})
        return
    node = found["node"]
    say(f"Stoker {found['version']} at {client.url} (pid {found['pid']}){', draining' if found['is_draining'] else ''}")
    say(f"  config   {found['config_path'] or 'embedded default'}" + _of(found["environment"]))
    if found["keeper_problem"]:
        say(f"  keeper   {found['keeper_problem']}")
    say(
        f"  memory   {size(node['used_bytes'])} used, {size(node['reserved_bytes'])} reserved, "
        f"{size(node['free_bytes'])} free for serverless, of {size(node['memory_bytes'])}"
    )
    say(f"  cores    {node['cores']}" + (f", {node['gpus_used']}/{node['gpus']} GPUs" if node["gpus"] else ""))
    print_table(
        ("NAME", "MODEL", "TIER", "STATUS", "READY>", "ONGOING>", "QUEUED>", "WAIT>", "COLD START>", "LAST ERROR"),
        (
            (
                each["name"],
                each["model"],
                each["tier"],
                each["status"],
                f"{each['ready_replicas']}/{each['wanted_replicas']}",
                each["ongoing"],
                each["queued"],
                seconds(each["eta_s"]),
                seconds(each["learned_start_s"]) + ("" if each["start_samples"] else " (guess)"),
                (each["last_error"] or "")[:80],
            )
            for each in found["deployments"]
        ),
        empty="no deployments; add one with `stoker deploy`",
    )


def ps(ctx: typer.Context, as_json: options.JSON = False) -> None:
    """List replicas."""
    found = options.client(ctx).get("/admin/replicas")
    if as_json:
        print_json(found)
        return
    print_table(
        ("REPLICA", "DEPLOYMENT", "TIER", "STATUS", "FOR>", "BUSY>", "IDLE>", "MEMORY>", "PID>", "REASON"),
        (
            (
                each["replica_id"],
                each["deployment"],
                each["tier"],
                each["status"] + ("" if each["is_current"] else " (old)"),
                seconds(each["status_for_s"]),
                f"{each['ongoing']}/{each['slots']}",
                seconds(each["idle_for_s"]),
                size(each["memory_bytes"]),
                each["pid"] or "–",
                each["reason"],
            )
            for each in found["replicas"]
        ),
        empty="no replicas; a serverless deployment starts one when it is asked",
    )


def move(
    ctx: typer.Context,
    name: str,
    tier: Annotated[Tier, typer.Option(help="Where to.")],
    replicas: Annotated[int | None, typer.Option(min=1, help="dedicated: reserved and warm.")] = None,
    min_replicas: Annotated[int | None, typer.Option("--min", min=0, help="serverless: kept warm.")] = None,
    max_replicas: Annotated[int | None, typer.Option("--max", min=1, help="serverless: ceiling.")] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="dedicated: whose keys may use it; repeatable.")] = None,
    reason: options.Reason = "",
    as_json: options.JSON = False,
) -> None:
    """Move a deployment to a tier, behind the same name and without a dropped request."""
    fields = {
        "tier": tier.value,
        "replicas": replicas,
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "tenants": tenant or None,
        "reason": reason,
    }
    _change(options.client(ctx), name, "move", fields, as_json=as_json)


def scale(
    ctx: typer.Context,
    name: str,
    min_replicas: Annotated[int | None, typer.Option("--min", min=0, help="serverless: kept warm.")] = None,
    max_replicas: Annotated[int | None, typer.Option("--max", min=1, help="serverless: ceiling.")] = None,
    replicas: Annotated[int | None, typer.Option(min=0, help="dedicated: reserved; serverless: kept warm.")] = None,
    reason: options.Reason = "",
    as_json: options.JSON = False,
) -> None:
    """Change how many replicas a deployment has."""
    fields = {"min_replicas": min_replicas, "max_replicas": max_replicas, "replicas": replicas, "reason": reason}
    _change(options.client(ctx), name, "scale", fields, as_json=as_json)


def delete(
    ctx: typer.Context,
    name: str,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: options.Reason = "",
) -> None:
    """Delete a deployment; streams in flight go on to their end."""
    client = options.client(ctx)
    found = client.send("GET", options.deployment_path(name))
    if not yes:
        typer.confirm(f"Delete deployment {name}?", abort=True)
    from urllib.parse import quote  # noqa: PLC0415

    path = f"{options.deployment_path(name)}?reason={quote(reason, safe='')}"
    client.send("DELETE", path, if_match=found.etag)
    say(f"{name} is deleted")


def _change(client: Client, name: str, verb: str, fields: dict[str, Any], *, as_json: bool) -> None:
    body = {key: value for key, value in fields.items() if value is not None}
    changed = client.send("POST", options.deployment_path(name, verb), body, timeout_s=LONG_TIMEOUT_S).body
    if as_json:
        print_json(changed)
    else:
        say(described(changed))


def described(deployment: dict[str, Any]) -> str:
    """Return one sentence about a deployment as `/admin` writes it. Pure."""
    settings = deployment["settings"]
    if settings["tier"] == "dedicated":
        count = f"{settings['replicas']} reserved"
        if settings["tenants"]:
            count += f" for {', '.join(settings['tenants'])}"
    else:
        count = f"{settings['min_replicas']} to {settings['max_replicas']} replicas"
    status = deployment["status"]
    return f"{deployment['name']} is {settings['tier']}, {count}" + (f"; {status['status']} now" if status else "")


def _of(environment: str | None) -> str:
    return "" if environment is None else f", environment {environment}"
