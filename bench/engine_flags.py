"""The flag settings that the bare engine is tried with, and how the field is thinned. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.statistics import median

CONTEXT_TOKENS = 2048

# Three flags decide nearly everything; the rest is tried on top of them. What is compared must serve the same, so the
# context is the deployment's, and a flag that changes the answer (another template, say) does not belong here.
LEAN: Mapping[str, Any] = {"warmup": False, "fit_params": False, "n_ctx": CONTEXT_TOKENS, "cache_ram_mib": 0}

_ONE_MORE: Mapping[str, Mapping[str, Any]] = {
    "threads=1": {"cpuparams.n_threads": 1, "cpuparams_batch.n_threads": 1},
    "threads=2": {"cpuparams.n_threads": 2, "cpuparams_batch.n_threads": 2},
    "poll=0": {"cpuparams.poll": 0, "cpuparams_batch.poll": 0},
    "n_batch=n_ubatch=64": {"n_batch": 64, "n_ubatch": 64},
    "n_batch=n_ubatch=256": {"n_batch": 256, "n_ubatch": 256},
    "load_mode=none": {"load_mode": "LLAMA_LOAD_MODE_NONE"},
    "load_mode=mmap": {"load_mode": "LLAMA_LOAD_MODE_MMAP"},
    "load_mode=mmap+mlock": {"load_mode": "LLAMA_LOAD_MODE_MMAP_MLOCK"},
    "load_mode=direct": {"load_mode": "LLAMA_LOAD_MODE_DIRECT_IO"},
    "flash_attn=on": {"flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_ENABLED"},
    "flash_attn=off": {"flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_DISABLED"},
    "no_extra_bufts": {"no_extra_bufts": True},
    "quiet, no UI": {"verbosity": 0, "ui": False, "endpoint_slots": False},
    "n_threads_http=2": {"n_threads_http": 2},
    "n_ctx_checkpoints=0": {"n_ctx_checkpoints": 0, "cache_idle_slots": False},
    "reasoning_format=none": {"reasoning_format": "COMMON_REASONING_FORMAT_NONE"},
    "several small gains": {
        "no_extra_bufts": True,
        "flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_ENABLED",
        "verbosity": 0,
        "ui": False,
        "n_threads_http": 2,
        "n_ctx_checkpoints": 0,
        "cache_idle_slots": False,
    },
}


@dataclass(frozen=True)
class Contender:
    """One way of starting the bare engine.

    Attributes:
        flags: dotted names of the wheel's parameters, set on its defaults.
        interpreter: options of the Python that runs it.
        environment: laid over the process's own.
    """

    name: str
    flags: Mapping[str, Any] = field(hash=False)
    interpreter: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)


# Threads that spin while they wait ruin a start whenever anything else computes (seconds instead of half of one), and
# gain nothing measurable when nothing does: the field waits passively, but for the defaults and one contender.
PASSIVE: Mapping[str, str] = {"OMP_WAIT_POLICY": "passive"}
DEFAULTS = Contender("defaults", {})
_IN_A_HURRY = frozenset({"threads=1", "n_batch=n_ubatch=64", "load_mode=none", "flash_attn=on", "several small gains"})


def contenders(*, is_quick: bool = False) -> tuple[Contender, ...]:
    """The whole field: the defaults, one flag at a time, the lean settings, and the lean settings with one more.

    Args:
        is_quick: leave out most of the last group, which hardly differ.
    """
    more = {name: flags for name, flags in _ONE_MORE.items() if not is_quick or name in _IN_A_HURRY}
    return (
        DEFAULTS,
        Contender("warmup off", {"warmup": False}, environment=PASSIVE),
        Contender("warmup, fit_params off", {"warmup": False, "fit_params": False}, environment=PASSIVE),
        Contender("lean", LEAN, environment=PASSIVE),
        Contender("lean, threads spin", LEAN),
        Contender("lean, python -E -s", LEAN, ("-E", "-s"), PASSIVE),
        *(Contender(f"lean, {name}", {**LEAN, **flags}, environment=PASSIVE) for name, flags in more.items()),
    )


def halve(
    field_of: Sequence[Contender],
    measure: Callable[[Contender], float],
    *,
    samples_a_round: int,
    num_finalists: int,
) -> tuple[tuple[Contender, ...], dict[str, list[float]]]:
    """Successive halving: measure all, keep the better half by median, repeat until `num_finalists` are left.

    The samples of earlier rounds count on. Within a round the field takes turns, so that a passing disturbance falls
    on all.

    Args:
        measure: seconds (or anything smaller-is-better); infinity for a failed start.

    Returns:
        The finalists, best first, and every sample by contender's name.

    Source: Jamieson and Talwalkar 2016, "Non-stochastic best arm identification".
    """
    left = list(field_of)
    samples: dict[str, list[float]] = {contender.name: [] for contender in left}
    while True:
        for _ in range(samples_a_round):
            for contender in left:
                samples[contender.name].append(measure(contender))
        left.sort(key=lambda contender: median(samples[contender.name]))
        if len(left) <= num_finalists:
            return tuple(left), samples
        left = left[: max(num_finalists, (len(left) + 1) // 2)]
