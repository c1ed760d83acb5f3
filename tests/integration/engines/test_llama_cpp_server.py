"""What the adapter says of llama.cpp, held against the real server."""

from __future__ import annotations

import asyncio
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stoker.fleet.engines.llama_cpp import LlamaCpp
from stoker.fleet.ports import Surface
from stoker.testing.models import default_model
from tests.integration.engines.conftest import Replica, plan, running, settings, short_folder

pytestmark = pytest.mark.timeout(180)

TEXT = "The lighthouse keeper wrote down every ship that passed, and the weather, and what he had for supper. "


def body_of(surface: Surface, text: str = TEXT * 4, tokens: int = 3) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {
        "chat.completions": {"messages": messages, "max_tokens": tokens},
        "completions": {"prompt": text, "max_tokens": tokens},
        "responses": {"input": text, "max_output_tokens": tokens},
        "messages": {"messages": messages, "max_tokens": tokens},
    }[surface]


def cached_tokens(answer: dict[str, Any]) -> int:
    usage = answer["usage"]
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return int(details.get("cached_tokens", 0)) + int(usage.get("cache_read_input_tokens", 0))


def mode_of(path: str | None) -> int:
    return stat.S_IMODE(Path(path or "").stat().st_mode)


def resident_bytes(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.split("Rss:")[1].split()[0]) * 1024


async def test_it_listens_for_its_owner_only_and_bears_the_deployments_name(replica: Replica) -> None:
    assert mode_of(replica.endpoint.socket_path) & 0o077 == 0
    answer = await replica.ask("chat.completions", replica.prepared("chat.completions", body_of("chat.completions")))
    assert answer["model"] == "chat"


@pytest.mark.parametrize("surface", ["chat.completions", "completions", "responses"])
async def test_a_request_is_served_by_its_slot_and_no_other(replica: Replica, surface: Surface) -> None:
    for slot in (1, 0, 1):
        before = await replica.slots()
        await replica.ask(surface, replica.prepared(surface, body_of(surface), slot=slot))
        after = await replica.slots()
        assert after[slot].get("id_task") != before[slot].get("id_task")
        assert after[1 - slot].get("id_task") == before[1 - slot].get("id_task")


@pytest.mark.parametrize("surface", ["chat.completions", "completions", "responses"])
async def test_a_prefix_is_reused_by_its_tenant_and_by_nobody_else(replica: Replica, surface: Surface) -> None:
    first = await replica.ask(surface, replica.prepared(surface, body_of(surface)))
    again = await replica.ask(surface, replica.prepared(surface, body_of(surface), may_reuse=True))
    other = await replica.ask(surface, replica.prepared(surface, body_of(surface), may_reuse=False))
    elsewhere = await replica.ask(surface, replica.prepared(surface, body_of(surface), slot=1, may_reuse=True))
    assert cached_tokens(first) == 0
    assert cached_tokens(again) > 0
    assert cached_tokens(other) == 0
    assert cached_tokens(elsewhere) == 0


async def test_messages_which_drops_our_fields_reuses_nothing() -> None:
    async with running(context_tokens=1024, slots=1) as replica:
        assert "messages" in LlamaCpp().surfaces(settings(slots=1), default_model())
        for surface in ("chat.completions", "messages", "messages"):
            answer = await replica.ask(surface, replica.prepared(surface, body_of(surface)))
            assert cached_tokens(answer) == 0
    assert "messages" not in LlamaCpp().surfaces(settings(slots=2), default_model())


async def test_embeddings_come_from_a_deployment_with_pooling() -> None:
    async with running(context_tokens=256, pooling="mean") as replica:
        answer = await replica.ask("embeddings", replica.prepared("embeddings", {"input": ["one", "two"]}))
        assert len(answer["data"]) == 2
        assert LlamaCpp().surfaces(settings(pooling="mean"), default_model()) == {"embeddings", "tokenize"}


async def test_sigterm_ends_it(replica: Replica) -> None:
    replica.process.terminate()
    assert await asyncio.to_thread(replica.process.wait, 10) == -signal.SIGTERM


async def test_the_engines_own_flags_reach_it_by_name_and_enumeration() -> None:
    args = {"cache_type_k": "q8_0", "flash_attn_type": "enabled", "cpuparams.poll": 0, "n_ubatch": 64}
    async with running(context_tokens=256, args=args) as replica:
        answer = await replica.ask("completions", replica.prepared("completions", body_of("completions", "Hello")))
        assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("kept", [0, 20, 4096, 1_000_000])
async def test_a_damaged_weight_file_ends_it_with_the_engines_words(kept: int) -> None:
    with short_folder() as folder:
        model = default_model()
        damaged = folder / "damaged.gguf"
        with model.path.open("rb") as whole:
            damaged.write_bytes(whole.read(kept))
        spec = plan(folder, model)
        argv = [word.replace(str(model.path), str(damaged)) for word in spec.argv]
        ended = await asyncio.to_thread(
            subprocess.run, argv, env=dict(spec.env), capture_output=True, timeout=60, check=False
        )
        words = (ended.stdout + ended.stderr)[-4096:].decode()
        assert ended.returncode > 0
        assert "damaged.gguf" in words
        assert "Traceback" not in words


async def test_a_value_that_an_enumeration_lacks_is_named_with_those_it_has() -> None:
    with short_folder() as folder:
        spec = plan(folder, default_model(), args={"cache_type_k": "q9_9"})
        ended = await asyncio.to_thread(
            subprocess.run, spec.argv, env=dict(spec.env), capture_output=True, timeout=60, check=False
        )
        assert ended.returncode > 0
        assert b"GGML_TYPE_Q8_0" in ended.stderr


@pytest.mark.parametrize(("context", "slots"), [(512, 1), (2048, 1), (2048, 4)])
async def test_the_memory_need_is_near_the_truth_and_never_below(context: int, slots: int) -> None:
    async with running(context_tokens=context, slots=slots) as replica:
        text = TEXT * (context // 30)
        for slot in range(slots):
            await replica.ask("completions", replica.prepared("completions", body_of("completions", text), slot=slot))
        # Resident rather than proportional: another engine on the same file would make this one look smaller.
        resident = resident_bytes(replica.process.pid)
    need = LlamaCpp().memory_need(settings(context_tokens=context, slots=slots), default_model())
    assert resident <= need.total_bytes <= 1.3 * resident, need.arithmetic
