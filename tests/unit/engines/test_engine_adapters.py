"""What the adapters decide without an engine: launch lines, dropped fields, surfaces, needs and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stoker.config.settings import DeploymentSettings
from stoker.errors import BadRequest, EngineFailed, ModelUnavailable
from stoker.fleet.engines.llama_cpp import LlamaCpp
from stoker.fleet.engines.openai_process import OpenAIProcess
from stoker.fleet.engines.vllm import Vllm, contract
from stoker.fleet.ports import Endpoint, LaunchRequest, LaunchSpec, SlotUse
from stoker.models.files import ModelFile

MIB = 2**20
MODEL = ModelFile(
    name="m",
    path=Path("/weights/m.gguf"),
    sha256="0" * 64,
    size_bytes=94 * MIB,
    context_tokens=8192,
    has_chat_template=True,
    metadata={
        "architecture": "llama", "block_count": 30, "embedding_length": 576, "head_count": 9, "head_count_kv": 3,
        "vocabulary_size": 49152,
    },
)  # fmt: skip
USE = SlotUse(slot_index=2, may_reuse_prefix=False, tenant_salt="salt-of-a")


def deployment(kind: str = "llama.cpp", **engine: Any) -> DeploymentSettings:
    return DeploymentSettings.model_validate({"model": "m", "engine": {"kind": kind, **engine}})


def request_for(settings: DeploymentSettings, model: ModelFile | None = MODEL) -> LaunchRequest:
    return LaunchRequest("chat-0123abcd", "chat", settings, model, Path("/run/s"), Path("/log/s"), threads=3)


def llama_order(**engine: Any) -> dict[str, Any]:
    spec = LlamaCpp().plan_launch(request_for(deployment(**engine)))
    assert isinstance(spec, LaunchSpec)
    order: dict[str, Any] = json.loads(spec.argv[-1])
    return order


# ------------------------------------------------------------------------------------------ llama.cpp


def test_the_context_is_that_of_a_slot_and_the_engine_is_given_the_sum() -> None:
    params = llama_order(context_tokens=1024, slots=4)["params"]
    assert (params["n_ctx"], params["n_parallel"]) == (4096, 4)


def test_nothing_outside_a_slot_is_cached_and_nothing_within_it_unless_asked() -> None:
    params = llama_order()["params"]
    assert (params["cache_ram_mib"], params["cache_idle_slots"], params["cache_prompt"]) == (0, False, False)


def test_threads_are_those_that_the_fleet_gave() -> None:
    params = llama_order()["params"]
    assert params["cpuparams.n_threads"] == params["cpuparams_batch.n_threads"] == 3


@pytest.mark.parametrize(
    ("name", "near"),
    [("cache_type_kk", "cache_type_k"), ("cpuparams.n_thread", "cpuparams.n_threads"), ("n_batchh", "n_batch")],
)
def test_an_unknown_flag_is_refused_with_near_names(name: str, near: str) -> None:
    with pytest.raises(BadRequest, match=name) as refused:
        llama_order(args={name: 1})
    assert near in str(refused.value.mend)


@pytest.mark.parametrize("name", ["n_ctx", "hostnames", "cache_ram_mib", "cache_prompt", "model.path", "ctx_shift"])
def test_flags_that_keep_tenants_or_counts_apart_are_not_for_args(name: str) -> None:
    with pytest.raises(BadRequest, match="set by Stoker"):
        llama_order(args={name: 1})


def test_a_flag_of_the_engine_passes_by_its_own_name() -> None:
    assert llama_order(args={"n_ubatch": 64})["params"]["n_ubatch"] == 64


def test_a_binary_gets_command_line_flags(tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    settings = deployment(binary=str(binary), context_tokens=512, slots=2, args={"n_predict": 9, "mlock": True})
    spec = LlamaCpp().plan_launch(request_for(settings))
    assert isinstance(spec, LaunchSpec)
    line = " ".join(spec.argv)
    assert spec.argv[0] == str(binary)
    for part in ("--ctx-size 1024", "--parallel 2", "--threads 3", "--alias chat", "--n-predict 9", "--mlock"):
        assert part in line


def test_a_binary_that_is_not_there_is_named() -> None:
    with pytest.raises(EngineFailed, match="no-such-server"):
        LlamaCpp().plan_launch(request_for(deployment(binary="no-such-server")))


def test_it_cannot_do_without_a_model_file() -> None:
    with pytest.raises(ModelUnavailable):
        LlamaCpp().plan_launch(request_for(deployment(), None))


def test_a_socket_path_that_no_kernel_takes_is_refused_before_the_start() -> None:
    request = LaunchRequest("chat-0123abcd", "chat", deployment(), MODEL, Path("/" + "x" * 110), Path("/log"), 1)
    with pytest.raises(EngineFailed, match="longer than"):
        LlamaCpp().plan_launch(request)


@pytest.mark.parametrize(
    "name",
    ["id_slot", "cache_prompt", "n_cache_reuse", "lora", "chat_template", "response_fields", "grammar_lazy", "verbose",
     "n_discard", "n_cmpl", "cache_salt", "kv_transfer_params", "priority"],
)  # fmt: skip
def test_a_clients_engine_control_does_not_reach_llama_cpp(name: str) -> None:
    body: dict[str, Any] = {"messages": [], name: "from the client"}
    LlamaCpp().prepare("chat.completions", body, USE)
    assert body.get(name) != "from the client"


def test_the_slot_and_its_reuse_are_ours_and_what_is_unknown_passes() -> None:
    body: dict[str, Any] = {"messages": [], "mirostat": 2, "chat_template_kwargs": {"enable_thinking": False}}
    LlamaCpp().prepare("chat.completions", body, USE)
    assert (body["id_slot"], body["cache_prompt"]) == (2, False)
    assert (body["mirostat"], body["chat_template_kwargs"]) == (2, {"enable_thinking": False})


@pytest.mark.parametrize("n", [2, 0, "3", True])
def test_several_answers_to_one_request_are_refused(n: object) -> None:
    body: dict[str, Any] = {"messages": [], "n": n}
    if n is True:  # JSON's true is no number, and the engine says so itself
        LlamaCpp().prepare("chat.completions", body, USE)
        return
    with pytest.raises(BadRequest) as refused:
        LlamaCpp().prepare("chat.completions", body, USE)
    assert refused.value.param == "n"


def test_the_memory_need_grows_with_context_and_slots_and_shows_its_sum() -> None:
    small = LlamaCpp().memory_need(deployment(context_tokens=512), MODEL)
    large = LlamaCpp().memory_need(deployment(context_tokens=2048, slots=4), MODEL)
    kv_bytes = 2 * 30 * 3 * 64 * 2  # K and V, layers, heads, head size, f16
    assert large.total_bytes - small.total_bytes >= kv_bytes * (4 * 2048 - 512)
    assert "weights 94 MiB" in large.arithmetic
    assert "4 slots" in large.arithmetic


def test_a_quantised_cache_needs_less() -> None:
    plain = LlamaCpp().memory_need(deployment(), MODEL)
    small = LlamaCpp().memory_need(deployment(args={"cache_type_k": "q8_0", "cache_type_v": "q8_0"}), MODEL)
    assert small.total_bytes < plain.total_bytes


def test_a_model_that_tells_nothing_of_itself_still_gets_a_figure() -> None:
    silent = ModelFile("m", Path("/m"), "0" * 64, 100 * MIB, None, False, {})
    assert LlamaCpp().memory_need(deployment(), silent).total_bytes > 100 * MIB


def test_surfaces_follow_template_pooling_and_slots() -> None:
    plain = ModelFile("m", Path("/m"), "0" * 64, 1, None, False, {})
    assert "chat.completions" not in LlamaCpp().surfaces(deployment(), plain)
    assert "messages" in LlamaCpp().surfaces(deployment(), MODEL)
    assert "messages" not in LlamaCpp().surfaces(deployment(slots=2), MODEL)
    assert LlamaCpp().surfaces(deployment(pooling="mean"), MODEL) == {"embeddings", "tokenize"}


# ------------------------------------------------------------------------------------------ any other server


def test_a_command_has_its_placeholders_filled_and_runs_under_a_shim() -> None:
    command = ["serve", "{model}", "--name={name}", "--uds", "{socket}"]
    spec = OpenAIProcess().plan_launch(request_for(deployment("openai", command=command)))
    assert isinstance(spec, LaunchSpec)
    assert spec.argv[-5:] == ("serve", "/weights/m.gguf", "--name=chat", "--uds", spec.endpoint.socket_path)
    assert "shim" in " ".join(spec.argv)


def test_a_command_without_a_socket_gets_a_free_port_on_loopback() -> None:
    spec = OpenAIProcess().plan_launch(request_for(deployment("openai", command=["serve", "--port", "{port}"])))
    assert isinstance(spec, LaunchSpec)
    assert spec.endpoint.host == "127.0.0.1"
    assert spec.argv[-1] == str(spec.endpoint.port)


def test_an_unknown_placeholder_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadRequest, match="gpu") as refused:
        OpenAIProcess().plan_launch(request_for(deployment("openai", command=["serve", "{gpu}"])))
    assert "{socket}" in str(refused.value.mend)


def test_a_url_is_used_as_it_is() -> None:
    endpoint = OpenAIProcess().plan_launch(request_for(deployment("openai", url="http://10.0.0.7:9000/base/")))
    assert endpoint == Endpoint(host="10.0.0.7", port=9000, base_path="/base")


@pytest.mark.parametrize("url", ["https://api.example.com", "ftp://x", "nonsense", None])
def test_what_is_not_plain_http_is_refused(url: str | None) -> None:
    with pytest.raises(BadRequest, match=r"plain HTTP|http://host"):
        OpenAIProcess().plan_launch(request_for(deployment("openai", url=url)))


def test_template_arguments_pass_but_no_template() -> None:
    filling = {"enable_thinking": False, "chat_template": "{{ evil }}", "tokenize": True}
    body: dict[str, Any] = {"messages": [], "chat_template_kwargs": filling}
    OpenAIProcess().prepare("chat.completions", body, USE)
    assert body == {"messages": [], "chat_template_kwargs": {"enable_thinking": False}}


def test_vllm_is_told_of_socket_slots_context_and_name() -> None:
    settings = deployment("vllm", command=["vllm", "serve", "m"], slots=8, context_tokens=4096, args={"dtype": "auto"})
    spec = Vllm().plan_launch(request_for(settings))
    assert isinstance(spec, LaunchSpec)
    line = " ".join(spec.argv)
    for part in ("--uds /run/s/", "--served-model-name chat", "--max-num-seqs 8", "--max-model-len 4096"):
        assert part in line
    assert "--enable-prompt-tokens-details" in line, "cached tokens are a matter of money"
    assert "--dtype auto" in line


def test_vllms_one_prefix_cache_is_keyed_by_tenant_whatever_the_client_says() -> None:
    body: dict[str, Any] = {"messages": [], "cache_salt": "of another", "request_id": "chosen", "priority": -1}
    Vllm().prepare("chat.completions", body, USE)
    assert body == {"messages": [], "cache_salt": "salt-of-a"}


def test_the_contract_says_where_it_was_read_and_that_it_was_not_run() -> None:
    assert contract()["status"] == "documented, not yet run"
    assert all("vllm-project/vllm" in source for source in contract()["read_from"])
