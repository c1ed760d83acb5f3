"""`stoker deploy`: four questions or flags, and the way to a live endpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stoker.cli import interview
from stoker.errors import BadRequest, ModelUnavailable
from tests.unit.cli.conftest import Server


def settings(server: Server, name: str) -> Any:
    return server.operator.deployments.get(name).settings


def test_four_questions_lead_to_a_live_endpoint(server: Server) -> None:
    result = server.run("deploy", input="1\ncpu x2\ndedicated eu-west\nlatency\n")
    assert result.exit_code == 0, result.output
    made = settings(server, "smollm2-135m")
    assert (made.tier, made.replicas, made.regions, made.engine.slots) == ("dedicated", 2, ("eu-west",), 1)
    assert "2 replica(s) ready" in result.stdout
    assert f"{server.url}/v1" in result.stdout
    for question in ("1/4 Model", "2/4 Hardware and count", "3/4 Tier and region", "4/4 Objective"):
        assert question in result.output


def test_empty_answers_take_what_is_offered(server: Server) -> None:
    result = server.run("deploy", input="\n\n\n\n")
    assert result.exit_code == 0, result.output
    made = settings(server, "smollm2-135m")
    assert (made.tier, made.min_replicas, made.max_replicas, made.gpus) == ("serverless", 0, 1, 0)
    assert "the first request wakes it in about 1.2 s (a guess" in result.stdout


def test_an_answer_that_cannot_be_read_is_asked_again(server: Server) -> None:
    result = server.run("deploy", input="99\nsmollm2-135m\nabacus\ncpu\nspot\nserverless\nfame\ncost\n")
    assert result.exit_code == 0, result.output
    for words in ("'99'", "'abacus'", "'spot'", "'fame'"):
        assert words in result.output


def test_an_interview_that_ends_early_makes_nothing(server: Server) -> None:
    assert server.run("deploy", input="1\n").exit_code == 1
    assert server.run("deploy", input="x\n" * 5).exit_code == 2
    assert [view.name for view in server.operator.deployments.list()] == ["chat"]


def test_a_taken_name_gets_a_number(server: Server) -> None:
    for expected in ("smollm2-135m", "smollm2-135m-2", "smollm2-135m-3"):
        assert server.run("deploy", input="\n\n\n\n").exit_code == 0
        assert settings(server, expected)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ([], ("serverless", 0, 1)),
        (["--max", "3"], ("serverless", 0, 3)),
        (["--min", "2"], ("serverless", 2, 2)),
        (["--objective", "latency"], ("serverless", 1, 1)),
        (["--tier", "dedicated", "--replicas", "2", "--tenant", "acme"], ("dedicated", 2, ("acme",))),
    ],
    ids=["nothing", "a maximum", "a minimum", "latency", "dedicated"],
)
def test_flags(server: Server, flags: list[str], found: tuple[Any, ...]) -> None:
    result = server.run("deploy", "mine", "--model", "smollm2-135m", *flags)
    assert result.exit_code == 0, result.output
    made = settings(server, "mine")
    if made.tier == "dedicated":
        assert (made.tier, made.replicas, made.tenants) == found
    else:
        assert (made.tier, made.min_replicas, made.max_replicas) == found


def test_any_setting_can_be_given(server: Server) -> None:
    made = server.json(
        "deploy", "mine", "-m", "smollm2-135m", "--set", "engine.slots=2", "--set", "keep_alive=5m", "--reason", "try"
    )
    assert made["settings"]["engine"]["slots"] == 2
    assert made["settings"]["keep_alive"] == 300.0
    assert made["override"]["reason"] == "try"
    assert made["progress"]["is_live"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mine"], "--model"),
        (["mine", "-m", "nope"], "nope"),
        (["mine", "-m", "smollm2-135m", "--replicas", "2"], "dedicated"),
        (["mine", "-m", "smollm2-135m", "--set", "engine"], "--set"),
        (["mine", "-m", "smollm2-135m", "--set", "colour=red"], "colour"),
    ],
    ids=["no model", "unknown model", "other tier's flag", "no assignment", "unknown setting"],
)
def test_what_cannot_be_is_bad_input(server: Server, arguments: list[str], words: str) -> None:
    result = server.run("deploy", *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_programs_are_refused_with_the_mend(server: Server) -> None:
    result = server.run("deploy", "mine", "-m", "smollm2-135m", "--set", 'engine.command=["id"]')
    assert result.exit_code == 1
    assert "stoker apply" in result.stderr


def test_a_model_that_cannot_be_had_ends_it(server: Server) -> None:
    server.operator.fleet.refusal = ModelUnavailable("qwen is cut off at 5 of 9 bytes", mend="pull it again")
    result = server.run("deploy", "mine", "-m", "smollm2-135m")
    assert result.exit_code == 1
    assert "cut off" in result.stderr


def test_a_deployment_that_fails_to_start_is_said_so_with_the_engines_words(server: Server) -> None:
    server.operator.fleet.status["mine"] = "failed"
    result = server.run("deploy", "mine", "-m", "smollm2-135m", "--tier", "dedicated")
    assert result.exit_code == 1
    assert "it [31mbroke" in result.stderr
    assert "stoker logs mine" in result.stderr


def test_one_that_takes_too_long_is_left_to_itself(server: Server) -> None:
    server.operator.fleet.status["mine"] = "waiting"
    result = server.run("deploy", "mine", "-m", "smollm2-135m", "--timeout", "0", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["progress"]["stage"] == "waiting"
    assert settings(server, "mine")


@pytest.mark.parametrize(
    ("text", "found"),
    [("cpu", (0, 1)), ("CPU x2", (0, 2)), ("gpu x 3", (1, 3)), ("4", (0, 4)), ("gpu×2", (1, 2)), ("x2", (0, 2))],
)
def test_hardware_and_count_are_read(text: str, found: tuple[int, int]) -> None:
    assert interview.parse_hardware(text) == found


@pytest.mark.parametrize("text", ["", "cpu x0", "tpu", "cpu x2000", "cpu gpu", "-1"])
def test_other_hardware_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        interview.parse_hardware(text)


def test_a_profile_is_never_changed_in_place() -> None:
    profile = {"engine": {"slots": 4, "context_tokens": 2048}}
    for objective in interview.OBJECTIVES:
        made = interview.settings_of(interview.Answers("m", 1, 0, "serverless", None, objective), profile)
        assert made["engine"]["context_tokens"] == 2048
    assert profile == {"engine": {"slots": 4, "context_tokens": 2048}}
