"""`stoker deploy`: by flags or by four questions, then the way to a live endpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer

from stoker.cli import interview, options
from stoker.cli.client import LONG_TIMEOUT_S, Client
from stoker.cli.fleet import Tier, described
from stoker.cli.terminal import FAILED, clean, note, print_json, say, seconds, size
from stoker.cli.up import endpoint_help
from stoker.errors import BadRequest, StokerError

_POLL_S = 0.25
_MAX_TRIES = 5
_T = TypeVar("_T")


class Objective(StrEnum):
    """What matters most."""

    COST = "cost"
    LATENCY = "latency"
    THROUGHPUT = "throughput"


def deploy(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="What clients call it; default: the model's name.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Of the catalogue or the configuration.")] = None,
    tier: Annotated[Tier, typer.Option(help="serverless: shared pool; dedicated: reserved.")] = Tier.SERVERLESS,
    replicas: Annotated[int | None, typer.Option(min=1, help="dedicated: reserved and warm.")] = None,
    min_replicas: Annotated[int | None, typer.Option("--min", min=0, help="serverless: kept warm.")] = None,
    max_replicas: Annotated[int | None, typer.Option("--max", min=1, help="serverless: ceiling.")] = None,
    gpus: Annotated[int, typer.Option(min=0, help="Whole devices per replica.")] = 0,
    region: Annotated[list[str] | None, typer.Option(help="Where it may run; repeatable.")] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="dedicated: whose keys may use it; repeatable.")] = None,
    objective: Annotated[Objective, typer.Option(help="cost, latency or throughput.")] = Objective.COST,
    assign: Annotated[list[str] | None, typer.Option("--set", help="Any other setting: --set engine.slots=2.")] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for the live endpoint.")] = 600.0,
    wait: Annotated[bool, typer.Option(help="Show the way to the live endpoint.")] = True,
    reason: options.Reason = "",
    as_json: options.JSON = False,
) -> None:
    """Add a deployment. Without arguments it asks four questions."""
    client = options.client(ctx)
    models = {each["name"]: each for each in client.get("/admin/models")["models"]}
    taken = {each["name"] for each in client.get("/admin/deployments")["deployments"]}
    if name is None and model is None:
        answers = _ask(client, list(models.values()))
        settings = interview.settings_of(answers, models[answers.model]["profile"])
        name = interview.free_name(answers.model, taken)
    else:
        chosen = model or name
        if chosen is None or (chosen not in models and model is None):
            raise BadRequest(f"which model shall {name} serve?", mend=f"--model, one of {', '.join(models)}")
        count = replicas if tier is Tier.DEDICATED else max_replicas
        answers = interview.Answers(chosen, count or 1, gpus, tier.value, None, objective.value)
        settings = interview.settings_of(answers, models.get(chosen, {}).get("profile", {}))
        given = {"regions": region, "tenants": tenant, "min_replicas": min_replicas}
        if tier is Tier.DEDICATED:
            given["max_replicas"] = max_replicas  # for the server to refuse with its own words
        else:
            given["replicas"] = replicas
            settings["max_replicas"] = max(settings["max_replicas"], settings["min_replicas"], min_replicas or 0)
        settings |= {key: value for key, value in given.items() if value is not None and value != []}
        name = name or interview.free_name(chosen, taken)
    settings = _merged(settings, interview.parse_assignments(assign or []))
    created = _create(client, {"name": name, "reason": reason, "settings": settings}, settings["model"])
    progress = _follow(client, name, timeout) if wait else None
    if as_json:
        print_json({**created, "url": f"{client.url}/v1", "progress": progress})
    else:
        say(described(created))
    if progress is not None and not progress["is_live"]:
        note(f"{name} is not live: {progress['last_error'] or progress['stage']}; see `stoker logs {name}`")
        raise typer.Exit(FAILED)
    if not as_json and progress is not None:
        say(_live(progress))
        say(f"  endpoint     {client.url}/v1")
        say(endpoint_help(client.url, name))
        say(f"  chat         stoker chat {name}")


# ---------------------------------------------------------------------------------------------- four questions


def _ask(client: Client, models: list[dict[str, Any]]) -> interview.Answers:
    node = client.get("/admin/status")["node"]
    names = [model["name"] for model in models]
    if not names:
        raise BadRequest("there is no model to deploy", mend="name one under `models:` in the configuration")
    for number, model in enumerate(models, 1):
        here = "here" if model["state"] == "verified" else model["state"]
        note(f"  {number}. {model['name']}  {size(model['memory_bytes'])}  {here}  {model['summary']}")
    model_name = _question("1/4 Model", names[0], lambda text: interview.parse_model(text, names))
    gpu_words = f"{node['gpus']} GPUs" if node["gpus"] else "no GPU"
    note(f"  this node: {node['cores']} cores, {size(node['free_bytes'])} free for serverless, {gpu_words}")
    gpus, count = _question("2/4 Hardware and count", "cpu x1", interview.parse_hardware)
    tier, region = _question("3/4 Tier and region", "serverless", interview.parse_tier)
    for objective, meaning in interview.OBJECTIVES.items():
        note(f"  {objective}: {meaning}")
    wanted = _question("4/4 Objective", "cost", interview.parse_objective)
    return interview.Answers(model_name, count, gpus, tier, region, wanted)


def _question(text: str, default: str, parse: Callable[[str], _T]) -> _T:
    """Ask until the answer can be read, at most a few times; the questions go to stderr."""
    for _ in range(_MAX_TRIES):
        try:
            return parse(str(typer.prompt(text, default=default, err=True)))
        except BadRequest as error:
            note(f"  {error}")
    raise BadRequest(f"no answer to {text!r}")


# ---------------------------------------------------------------------------------------------- the way to live


def _create(client: Client, body: dict[str, Any], model: str) -> dict[str, Any]:
    """Create it, showing the download that may come first."""
    outcome: list[Any] = []

    def post() -> None:
        try:
            outcome.append(client.send("POST", "/admin/deployments", body, timeout_s=LONG_TIMEOUT_S).body)
        except BaseException as error:
            outcome.append(error)

    worker = threading.Thread(target=post, daemon=True)
    worker.start()
    shown = ""
    while worker.is_alive():
        worker.join(_POLL_S)
        if worker.is_alive():
            shown = _show_fetch(client, model, shown)
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    created: dict[str, Any] = result
    return created


def _show_fetch(client: Client, model: str, shown: str) -> str:
    try:
        found = {each["name"]: each["fetch"] for each in client.get("/admin/models")["models"]}.get(model)
    except StokerError:
        return shown  # the request itself will say what is wrong
    if not found:
        return shown
    total = found["total_bytes"]
    share = f" {found['done_bytes'] / total:.0%} of {size(total)}" if total else f" {size(found['done_bytes'])}"
    line = f"  {found['phase']}{share}"
    if line != shown:
        note(line)
    return line


def _follow(client: Client, name: str, timeout_s: float) -> dict[str, Any]:
    """Show each stage until the endpoint is live, has failed, or the time is over; return the last one."""
    deadline = time.monotonic() + timeout_s
    shown = ""
    while True:
        progress: dict[str, Any] = client.get(options.deployment_path(name, "progress"))
        if progress["stage"] != shown:
            shown = progress["stage"]
            eta = f", about {seconds(progress['eta_s'])} to go" if progress["eta_s"] else ""
            note(f"  {clean(shown)}{eta}")
        if progress["is_live"] or progress["is_failed"] or time.monotonic() >= deadline:
            return progress
        time.sleep(_POLL_S)


def _live(progress: dict[str, Any]) -> str:
    if progress["stage"] == "ready":
        return f"live: {progress['ready_replicas']} replica(s) ready"
    known = "measured" if progress["start_samples"] else "a guess until it was measured"
    return f"live and cold: the first request wakes it in about {seconds(progress['learned_start_s'])} ({known})"


def _merged(settings: dict[str, Any], assigned: dict[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for key, value in assigned.items():
        own = merged.get(key)
        merged[key] = _merged(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return merged
