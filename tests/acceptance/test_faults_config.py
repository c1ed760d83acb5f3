"""A configuration that is edited while the server runs: what differs is shown, taken up or refused; nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from stoker.testing.server import RunningStoker
from tests.acceptance.fakes import command_line, config, deployment

BEFORE = config(deployment("chat", max_wait="10s", max_queue=8))
PATH = "/admin/deployments/chat"


@pytest.fixture
def stoker() -> Iterator[RunningStoker]:
    with RunningStoker(BEFORE) as running:
        yield running


def settings(stoker: RunningStoker) -> dict[str, Any]:
    found: dict[str, Any] = stoker.admin("GET", PATH).json()["settings"]
    return found


def override(stoker: RunningStoker, **patch: object) -> None:
    answer = stoker.admin("PATCH", PATH, {**patch, "reason": "trial"}, headers={"If-Match": "*"})
    assert answer.status == 200, answer.body


def test_diff_shows_an_edit_and_apply_takes_it_up_without_a_restart(stoker: RunningStoker) -> None:
    assert stoker.chat("chat", max_tokens=1).status == 200
    (before,) = stoker.replicas()
    assert "no drift" in command_line(stoker.state_dir, "config", "diff").stdout

    edited = config(deployment("chat", max_wait="30s", max_queue=8), deployment("second"))
    stoker.config_path.write_text(edited)
    diff = command_line(stoker.state_dir, "config", "diff")
    assert diff.returncode == 0
    assert "deployments.chat.max_wait" in diff.stdout
    assert "30s" in diff.stdout
    assert "10s" in diff.stdout
    assert "deployments.second" in diff.stdout
    assert "stoker apply" in diff.stdout
    assert settings(stoker)["max_wait"] == 10  # nothing happens by itself
    assert stoker.chat("second").status == 404

    assert "dry run" in command_line(stoker.state_dir, "apply", "--dry-run").stdout
    assert stoker.chat("second").status == 404
    applied = command_line(stoker.state_dir, "apply")
    assert applied.returncode == 0, applied.stderr
    assert settings(stoker)["max_wait"] == 30
    assert stoker.chat("second", max_tokens=1).status == 200
    assert [r["replica_id"] for r in stoker.replicas() if r["deployment"] == "chat"] == [before["replica_id"]]
    assert "no drift" in command_line(stoker.state_dir, "config", "diff").stdout


def test_a_broken_edit_is_named_with_its_line_and_changes_nothing(stoker: RunningStoker) -> None:
    stoker.config_path.write_text(BEFORE.replace("max_queue", "max_qeue"))
    for arguments in (("apply",), ("config", "diff")):
        refused = command_line(stoker.state_dir, *arguments)
        assert refused.returncode == 2
        assert "stoker.yaml:4" in refused.stderr
        assert "max_queue" in refused.stderr
    assert settings(stoker)["max_queue"] == 8
    assert stoker.chat("chat", max_tokens=1).status == 200


@pytest.mark.parametrize(("choice", "wins"), [("--keep", 20), ("--discard", 30)])
def test_where_file_and_runtime_change_disagree_somebody_must_choose(
    stoker: RunningStoker, choice: str, wins: int
) -> None:
    override(stoker, max_wait="20s")
    stoker.config_path.write_text(BEFORE.replace("10s", "30s"))
    refused = command_line(stoker.state_dir, "apply")
    assert refused.returncode == 1
    for words in ("CONFLICT", "deployments.chat.max_wait", "10s", "20s", "30s"):
        assert words in refused.stdout
    assert "--keep" in refused.stderr
    assert "--discard" in refused.stderr
    direct = stoker.admin("POST", "/admin/apply", {})
    assert direct.status == 409
    assert direct.json()["error"]["conflicts"][0]["path"] == ["deployments", "chat", "max_wait"]
    assert settings(stoker)["max_wait"] == 20

    chosen = command_line(stoker.state_dir, "apply", choice)
    assert chosen.returncode == 0, chosen.stderr
    assert settings(stoker)["max_wait"] == wins


def test_a_restart_changes_nothing(stoker: RunningStoker) -> None:
    override(stoker, max_wait="20s")
    before = stoker.admin("GET", PATH)
    drift = json.loads(command_line(stoker.state_dir, "config", "diff", "--json").stdout)
    assert stoker.stop() == 0
    stoker.start()
    after = stoker.admin("GET", PATH)
    assert after.headers["etag"] == before.headers["etag"]
    assert after.json()["override"] == before.json()["override"]
    assert json.loads(command_line(stoker.state_dir, "config", "diff", "--json").stdout) == drift
    assert drift["has_drift"]
    assert drift["overrides"][0]["reason"] == "trial"


def test_an_edit_that_nobody_applied_is_not_taken_up_by_a_restart(stoker: RunningStoker) -> None:
    stoker.config_path.write_text(BEFORE.replace("10s", "30s"))
    assert stoker.stop() == 0
    stoker.start(config=stoker.config_path.read_text())
    assert settings(stoker)["max_wait"] == 10
    assert "stoker apply" in command_line(stoker.state_dir, "config", "diff").stdout
    assert "stoker apply" in stoker.output  # the start says so too
