"""`stoker chat`: talk to a deployment as any client would, and see what each answer took."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoker.cli import options
from stoker.cli.client import Client, ServerSaid
from stoker.cli.terminal import clean, note, print_json, seconds
from stoker.errors import BadRequest, EngineFailed

if TYPE_CHECKING:
    from http.client import HTTPResponse


def chat(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="A deployment; may be left out when there is one.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this once and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model shall be.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0: always the likeliest word.")] = None,
    as_json: options.JSON = False,
) -> None:
    """Talk to a deployment. The key is STOKER_API_KEY; on loopback without keys none is needed."""
    if as_json and message is None:
        raise BadRequest("--json needs a single question", mend="add -m 'your question'")
    client = options.client(ctx)
    model = name or _only_deployment(client)
    messages: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
    wanted = {"max_tokens": max_tokens, "temperature": temperature}
    fields = {key: value for key, value in wanted.items() if value is not None}
    if message is not None:
        turn = _turn(client, model, [*messages, _by_user(message)], fields, is_shown=not as_json)
        if as_json:
            print_json(turn.facts(model))
        return
    note(f"talking to {model}; Ctrl-D ends")
    while (text := _read_line()) is not None:
        if not text.strip():
            continue
        messages.append(_by_user(text))
        try:
            turn = _turn(client, model, messages, fields, is_shown=True)
        except (ServerSaid, EngineFailed) as error:
            note(f"error: {error}")
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": turn.text})


@dataclass(slots=True)
class Turn:
    """One answer and what it took, as this client saw it.

    Attributes:
        ttft_s: from sending the request to the first word.
        usage: as on the OpenAI wire; empty when the engine told none.
    """

    text: str = ""
    ttft_s: float | None = None
    duration_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    cost_usd: Any = None

    def facts(self, model: str) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "deployment": model,
            "text": self.text,
            "ttft_s": self.ttft_s,
            "duration_s": self.duration_s,
            "tier": self.headers.get("x-stoker-tier"),
            "served_by": self.headers.get("x-stoker-served-by"),
            "request_id": self.headers.get("x-stoker-request-id"),
            "cold_start_ms": _number(self.headers.get("x-stoker-cold-start-ms")),
            "queue_ms": _number(self.headers.get("x-stoker-queue-ms")),
            "input_tokens": self.usage.get("prompt_tokens"),
            "output_tokens": self.usage.get("completion_tokens"),
            "cost_usd": self.cost_usd,
        }

    def summary(self) -> str:
        """Return one line for people."""
        cold_ms = _number(self.headers.get("x-stoker-cold-start-ms")) or 0
        parts = [
            f"first token after {seconds(self.ttft_s)}",
            f"cold start {seconds(cold_ms / 1000)}" if cold_ms else "",
            self.headers.get("x-stoker-tier", ""),
            f"{self.usage['prompt_tokens']} in, {self.usage['completion_tokens']} out" if self.usage else "",
            f"${self.cost_usd}" if self.cost_usd is not None else "unpriced",
        ]
        return " · ".join(part for part in parts if part)


def _turn(
    client: Client, model: str, messages: list[dict[str, str]], fields: dict[str, Any], *, is_shown: bool
) -> Turn:
    """Ask once, printing words as they come."""
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    turn = Turn()
    started_s = time.monotonic()
    try:
        with client.infer("/v1/chat/completions", body) as answer:
            turn.headers = {name.lower(): value for name, value in answer.getheaders()}
            for event in _events(answer):
                _take(turn, event, started_s, is_shown=is_shown)
    finally:
        turn.duration_s = time.monotonic() - started_s
        if is_shown and turn.text:
            print(flush=True)
    if is_shown:
        note(turn.summary())
    return turn


def _take(turn: Turn, event: dict[str, Any], started_s: float, *, is_shown: bool) -> None:
    if isinstance(event.get("error"), dict):
        raise EngineFailed(str(event["error"].get("message", "the stream broke")))
    for choice in event.get("choices") or ():
        words = (choice.get("delta") or {}).get("content")
        if words:
            if turn.ttft_s is None:
                turn.ttft_s = time.monotonic() - started_s
            turn.text += words
            if is_shown:
                print(clean(words, keep_lines=True), end="", flush=True)
    if isinstance(event.get("usage"), dict):
        turn.usage = event["usage"]
    # The extension stands beside the usage, or in it.
    for place in (event, event.get("usage") or {}):
        extension = place.get("x_stoker")
        if isinstance(extension, dict) and extension.get("cost_usd") is not None:
            turn.cost_usd = extension["cost_usd"]


def _events(answer: HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the JSON of each SSE event until `[DONE]`.

    Raises:
        EngineFailed: the stream ended without `[DONE]`.
    """
    for raw in answer:
        line = raw.strip()
        if not line.startswith(b"data:"):
            continue
        content = line[5:].strip()
        if content == b"[DONE]":
            return
        try:
            event = json.loads(content)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event
    raise EngineFailed("the stream was cut off before its end", mend="ask again; see `stoker ps`")


def _only_deployment(client: Client) -> str:
    with client.infer("/v1/models", None) as answer:
        names = [str(each["id"]) for each in json.loads(answer.read())["data"]]
    if len(names) != 1:
        known = ", ".join(names) or "there is none: stoker deploy"
        raise BadRequest("which deployment?", mend=f"stoker chat NAME ({known})")
    return names[0]


def _read_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return None


def _by_user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
