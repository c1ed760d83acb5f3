"""Every command against a server: what it prints, what its `--json` holds, and how it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stoker.cli.main import app
from stoker.cli.terminal import clean, seconds, size
from stoker.errors import InsufficientMemory
from stoker.ledger.records import RequestIntent
from tests.unit.cli.conftest import FILE, Server

# ------------------------------------------------------------------------------------------------ start and errors


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['stoker', '--help']\n"
        "try:\n    from stoker.cli.main import main; main()\n"
        "except SystemExit: pass\n"
        "heavy = {'pydantic', 'sqlalchemy', 'starlette', 'uvicorn', 'aiohttp', 'rich', 'ruamel', 'http.client',"
        " 'orjson', 'stoker.wiring', 'stoker.config'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "deploy" in done.stdout
    assert done.stdout.rstrip().endswith("HEAVY []")


@pytest.mark.parametrize(
    "command",
    [
        ["status"], ["ps"], ["usage"], ["keys", "list"], ["keys", "create", "a"], ["config", "diff"], ["apply"],
        ["logs", "chat"], ["chat", "chat", "-m", "hi"], ["deploy"], ["move", "chat", "--tier", "dedicated"],
        ["scale", "chat", "--min", "1"], ["delete", "chat", "-y"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_without_a_server_each_says_so_and_exits_with_3(tmp_path: Path, command: list[str]) -> None:
    result = CliRunner().invoke(app, ["--state-dir", str(tmp_path), *command])
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "stoker up" in result.stderr


def test_a_server_that_died_is_no_server(server: Server) -> None:
    (server.state_dir / "run" / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:9", "pid": 1}))
    result = server.run("ps")
    assert result.exit_code == 3
    assert "127.0.0.1:9" in result.stderr


def test_more_than_one_worker_is_refused_in_words() -> None:
    result = CliRunner().invoke(app, ["up", "--workers", "2"])
    assert result.exit_code == 2
    assert "not possible yet" in result.stderr


def test_the_cli_names_itself_as_the_author_and_sends_the_token(server: Server) -> None:
    assert server.run("scale", "chat", "--min", "1", "--reason", "more").exit_code == 0
    headers = server.asked[-1][2]
    assert headers["Authorization"] == "Bearer token"
    override = server.operator.ledger.overrides["chat"]
    assert (override.author, override.reason) == ("cli", "more")


def test_a_refusal_is_two_lines_on_stderr(server: Server) -> None:
    server.operator.fleet.refusal = InsufficientMemory("800 MiB > 512 MiB", mend="give it less context")
    result = server.run("move", "chat", "--tier", "dedicated")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == ["error: 800 MiB > 512 MiB", "  try: give it less context"]


def test_invalid_settings_exit_with_2(server: Server) -> None:
    result = server.run("scale", "chat", "--min", "9")
    assert result.exit_code == 2
    assert "min_replicas" in result.stderr


# ------------------------------------------------------------------------------------------------ listings


def test_every_listing_has_json_with_units_in_its_names(server: Server) -> None:
    server.run("scale", "chat", "--min", "1")
    assert server.json("status")["node"]["memory_bytes"] == 4096 * 2**20
    assert server.json("status")["url"] == server.url
    (replica,) = server.json("ps")["replicas"]
    assert {"replica_id", "status_for_s", "memory_bytes", "ongoing"} <= replica.keys()
    assert server.json("usage")["rows"] == []
    assert [key["key_id"] for key in server.json("keys", "list")["keys"]] == ["local"]
    assert server.json("config", "diff")["has_drift"] is True
    assert server.json("apply", "--dry-run")["changes"] == []
    assert server.json("scale", "chat", "--min", "0")["settings"]["min_replicas"] == 0
    assert server.json("move", "chat", "--tier", "dedicated")["settings"]["tier"] == "dedicated"
    assert "memory_bytes" in server.json("doctor")
    assert server.json("keys", "create", "a")["secret"].startswith("sk-stoker-")


def test_listings_for_people(server: Server) -> None:
    assert "no replicas" in server.run("ps").stdout
    assert "no requests" in server.run("usage").stdout
    server.run("scale", "chat", "--min", "1")
    assert "chat-00000000" in server.run("ps").stdout
    status = server.run("status").stdout
    assert "1.2 s (guess)" in status
    assert "/etc/stoker.yaml" in status


def test_usage_never_shows_an_unpriced_cost_as_zero(server: Server) -> None:
    now_us = int(server.operator.clock.now().timestamp() * 1e6) - 1000
    row: dict[str, Any] = {"deployment": "chat", "num_unpriced": 2, "price_nanousd": 0, "price_usd": "0"}
    from stoker.cli.usage import _price

    assert _price(row) == "unpriced (2)"
    assert _price({**row, "num_unpriced": 0}) == "0"
    assert _price({**row, "price_nanousd": 5, "price_usd": "0.5"}) == "0.5 + 2 unpriced"
    server.operator.ledger.intents["r"] = RequestIntent(
        "r", now_us, "k", "t", "chat", "serverless", "completions", False, None
    )
    assert "chat" in server.run("usage").stdout


# ------------------------------------------------------------------------------------------------ untrusted text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain", "plain"),
        ("\x1b[2J\x1b]0;title\x07x", "[2J]0;titlex"),
        ("a\x9b31mb", "a31mb"),
        ("a\r\nb\tc", "a b c"),
        ("\u202egpj.exe", "gpj.exe"),
        ("x\u2066y\u2069", "xy"),
        ("🔥 grüß 火", "🔥 grüß 火"),
        ("\ud800", ""),
    ],
    ids=["plain", "escape", "C1", "lines", "right to left", "isolates", "letters", "lone surrogate"],
)
def test_text_of_others_cannot_steer_the_terminal(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_no_command_passes_control_characters_on(server: Server, sse: Callable[..., bytes]) -> None:
    server.operator.fleet.status["chat"] = "failed"
    assert "it [31mbroke" in server.run("status").stdout
    assert "\\u001b" in server.run("status", "--json").stdout
    (server.operator.log_dir / "chat-00000001.log").write_text("\x1b]52;c;aGk=\x07[bold]x[/bold]\n")
    assert server.run("logs", "chat-00000001").stdout == "]52;c;aGk=[bold]x[/bold]\n"
    server.v1["/v1/chat/completions"] = (200, {}, sse({"choices": [{"delta": {"content": "\x1b[31mred\nblue"}}]}))
    result = server.run("chat", "chat", "-m", "hi")
    assert result.stdout == "[31mred\nblue\n"
    assert "\x1b" not in result.stderr


def test_units_for_people() -> None:
    assert [size(n) for n in (None, 12, 1536, 98_000_000, 3 * 2**30, 2**41)] == [
        "–", "12 B", "2 KiB", "93.5 MiB", "3.0 GiB", "2.0 TiB",
    ]  # fmt: skip
    assert [seconds(s) for s in (None, 0.0402, 3.21, 310, 7380)] == ["–", "40 ms", "3.2 s", "5 m 10 s", "2 h 3 m"]


# ------------------------------------------------------------------------------------------------ changes


def test_delete_asks_and_uses_the_etag_that_it_saw(server: Server) -> None:
    assert server.run("delete", "chat", input="n\n").exit_code == 1
    assert server.operator.deployments.get("chat")
    assert server.run("delete", "chat", input="y\n").exit_code == 0
    assert server.asked[-1][2]["If-Match"] not in {"", "*"}
    assert server.operator.deployments.list() == ()
    gone = server.run("delete", "chat", "-y")
    assert gone.exit_code == 1
    assert "no deployment 'chat'" in gone.stderr


def test_a_name_stays_one_segment_of_the_path(server: Server) -> None:
    assert server.run("delete", "../keys/x", "-y").exit_code == 1
    assert server.asked[-1][1] == "/admin/deployments/..%2Fkeys%2Fx"


def test_apply_shows_all_three_sides_and_refuses_until_told(server: Server) -> None:
    server.run("scale", "chat", "--max", "7")
    server.operator.text = FILE.replace("max_replicas: 4", "max_replicas: 9")
    refused = server.run("apply")
    assert refused.exit_code == 1
    (row,) = [
        line for line in refused.stdout.splitlines() if "max_replicas" in line and line.split()[1:] == list("497")
    ]
    assert "deployments.chat.max_replicas" in row
    assert "--discard" in refused.stderr
    assert server.operator.deployments.get("chat").settings.max_replicas == 7
    assert server.run("apply", "--keep", "--discard").exit_code == 2
    assert server.run("apply", "--discard", "--dry-run").exit_code == 0
    assert server.operator.deployments.get("chat").settings.max_replicas == 7
    applied = server.run("apply", "--discard")
    assert "applied" in applied.stdout
    assert server.operator.deployments.get("chat").settings.max_replicas == 9


def test_drift_names_who_changed_what(server: Server) -> None:
    assert "no drift" in server.run("config", "diff").stdout
    server.run("scale", "chat", "--max", "7", "--reason", "fair\x1b week")
    shown = server.run("config", "diff").stdout
    assert "deployments.chat.max_replicas: file 4, runs 7" in shown
    assert "by cli" in shown
    assert "(fair week)" in shown


def test_keys_show_their_secret_once_on_stdout_alone(server: Server) -> None:
    created = server.run("keys", "create", "alice", "--tenant", "acme", "--deployment", "chat")
    secret = created.stdout.strip()
    assert secret.startswith("sk-stoker-")
    assert secret not in created.stderr
    listed = server.run("keys", "list").stdout
    assert "acme" in listed
    assert secret not in listed
    key_id = next(iter(server.operator.ledger.keys))
    assert server.run("keys", "revoke", key_id).exit_code == 0
    assert server.run("keys", "revoke", key_id).exit_code == 1


# ------------------------------------------------------------------------------------------------ configuration


def test_config_check_prints_every_problem_with_its_line_and_exits_with_2(tmp_path: Path) -> None:
    path = tmp_path / "stoker.yaml"
    path.write_text("deployments:\n  chat:\n    modle: x\n    max_replicas: many\n")
    result = CliRunner().invoke(app, ["config", "check", "--config", str(path)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"{path}:3" in result.stderr
    assert f"{path}:4" in result.stderr
    problems = json.loads(CliRunner().invoke(app, ["config", "check", "-c", str(path), "--json"]).stdout)["problems"]
    assert len(problems) >= 3
    path.write_text(FILE)
    assert "is valid" in CliRunner().invoke(app, ["config", "check", "--config", str(path)]).stdout


def test_config_schema_is_a_json_schema() -> None:
    schema = json.loads(CliRunner().invoke(app, ["config", "schema"]).stdout)
    assert "deployments" in schema["properties"]


def test_models_list_works_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_CACHE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    listed = json.loads(CliRunner().invoke(app, ["models", "list", "--json"]).stdout)["models"]
    assert {"smollm2-135m"} <= {model["name"] for model in listed}
    assert {model["state"] for model in listed} == {"absent"}
    removed = CliRunner().invoke(app, ["models", "rm", "smollm2-135m"])
    assert removed.exit_code == 1
    unknown = CliRunner().invoke(app, ["models", "pull", "nope"])
    assert (unknown.exit_code, "smollm2-135m" in unknown.stderr) == (1, True)


def test_models_pull_and_rm_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stoker.testing.gguf import tiny_gguf

    monkeypatch.setenv("STOKER_CACHE_DIR", str(tmp_path / "cache"))
    weights = tmp_path / "w.gguf"
    weights.write_bytes(tiny_gguf())
    pulled = CliRunner().invoke(app, ["models", "pull", f"file://{weights}", "--json"])
    assert pulled.exit_code == 0, pulled.output
    assert json.loads(pulled.stdout)["size_bytes"] == weights.stat().st_size
    assert CliRunner().invoke(app, ["models", "rm", f"file://{weights}"]).exit_code == 0
    assert weights.exists()
