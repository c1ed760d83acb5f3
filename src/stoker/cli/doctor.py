"""`stoker doctor`: what this machine offers, and whether a server runs."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import typer

from stoker.cli import options
from stoker.cli.client import Client
from stoker.cli.terminal import NoServer, print_json, say, size
from stoker.errors import StokerError


def doctor(ctx: typer.Context, as_json: options.JSON = False) -> None:
    """Tell what this machine offers: engines, memory, swap, cgroups, CRIU, KVM, GPUs."""
    from stoker.fleet.nodes.local import inspect_node  # noqa: PLC0415 - looks at the machine
    from stoker.models.store import cache_dir  # noqa: PLC0415 - 0.4 s

    state = options.state_dir(ctx)
    places: dict[str, Any] = {
        "state_dir": str(state),
        "is_state_dir_writable": _is_writable(str(state)),
        "cache_dir": str(cache_dir()),
    }
    found: dict[str, Any] = {**asdict(inspect_node()), **places, "server": _server(ctx)}
    found["gpus"] = list(found["gpus"])
    if as_json:
        print_json(found)
        return
    engines = ", ".join(f"{kind} ({where})" for kind, where in found["engines"].items())
    delegated = "groups of our own" if found["is_cgroup_delegated"] else "no groups of our own"
    lines = {
        "engines": engines or "none found; `pip install xllamacpp`, or put llama-server on PATH",
        "cores": str(found["cores"]),
        "memory": f"{size(found['memory_bytes'])}, {size(found['memory_available_bytes'])} available now",
        "swap": size(found["swap_bytes"]) if found["swap_bytes"] else "none: an idle engine cannot be paged out",
        "cgroups": f"{found['cgroup']}, {delegated}",
        "CRIU": "yes" if found["has_criu"] else "no",
        "KVM": "yes" if found["has_kvm"] else "no",
        "GPUs": ", ".join(found["gpus"]) or "none",
        "state": places["state_dir"] + ("" if places["is_state_dir_writable"] else " (not writable)"),
        "models": places["cache_dir"],
        "server": found["server"]["url"] or found["server"]["problem"],
    }
    for name, value in lines.items():
        say(f"{name:<9}{value}")


def _server(ctx: typer.Context) -> dict[str, Any]:
    try:
        client: Client = options.client(ctx)
        status = client.get("/admin/status")
    except NoServer as error:
        return {"url": None, "problem": error.message}
    except StokerError as error:
        return {"url": None, "problem": str(error)}
    return {"url": client.url, "problem": status["keeper_problem"]}


def _is_writable(path: str) -> bool:
    """Tell whether a directory, or the nearest one above it that exists, can be written."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.access(path, os.W_OK)
