"""What `engine.args` may say to llama.cpp."""

from pathlib import Path

import pytest

from stoker.config.settings import DeploymentSettings
from stoker.errors import BadRequest
from stoker.fleet.engines.llama_cpp import LlamaCpp
from stoker.fleet.ports import LaunchRequest, LaunchSpec
from stoker.models.files import ModelFile


def plan(tmp_path: Path, args: dict[str, object], binary: str | None = None) -> LaunchSpec:
    settings = DeploymentSettings.model_validate(
        {"model": "m", "engine": {"context_tokens": 512, "args": args, **({"binary": binary} if binary else {})}}
    )
    model = ModelFile("m", tmp_path / "m.gguf", "0" * 64, 1, 512, has_chat_template=True)
    spec = LlamaCpp().plan_launch(LaunchRequest("m-00000000", "m", settings, model, tmp_path, tmp_path, threads=1))
    assert isinstance(spec, LaunchSpec)
    return spec


def test_a_flag_of_the_engine_is_passed_on(tmp_path: Path) -> None:
    assert '"n_ubatch": 256' in plan(tmp_path, {"n_ubatch": 256}).argv[-1]


@pytest.mark.parametrize("flag", ["slot_save_path", "path_prompt_cache", "mmproj.path", "mcp_servers_json", "hf_token"])
@pytest.mark.parametrize("binary", [None, "/bin/true"])
def test_a_flag_that_reaches_outside_is_refused(tmp_path: Path, flag: str, binary: str | None) -> None:
    with pytest.raises(BadRequest, match="reach files, programs or hosts"):
        plan(tmp_path, {flag: "/etc"}, binary)


def test_a_flag_in_dashes_is_refused_alike(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="reach"):
        plan(tmp_path, {"slot-save-path": "/etc"}, "/bin/true")


def test_a_misspelt_flag_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        plan(tmp_path, {"n_ubach": 256})
    assert "n_ubatch" in str(refused.value)
