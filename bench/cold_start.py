"""From no process to the first token: Stoker's gateway against the bare engine of the same wheel, in the same run.

Contenders take turns. Stoker's figure runs from the request's departure to the first token at the client, the bare
engine's from the spawn of its process to the first token at a client that polls every two milliseconds: so the bare
engine is spared the gateway, and Stoker is spared nothing. Touches processes, sockets, files and the page cache.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.bare_engine import __file__ as BARE_ENGINE
from bench.engine_flags import CONTEXT_TOKENS, DEFAULTS, PASSIVE, Contender, contenders, halve
from bench.first_token import Address, NotServedError, chat_body, is_healthy, is_listening, stream_chat, wait_until
from bench.native_tools import build
from bench.processes import Child
from bench.statistics import Goal, median, summarise
from bench.stoker_server import KEY, BenchedStoker, embedded_model_path
from stoker.config.builtin import DEFAULT_MODEL

PROMPT = "Say hello to the stoker."
NUM_TOKENS = 4
START_S = 60.0

BEST_FLAGS_GOAL = Goal("cold_vs_best_flags", 1.1, "at_most", "Stoker's median ÷ the best bare flags' median, cache hot")
THREE_GOAL = Goal(
    "three_cold_vs_slowest",
    1.3,
    "at_most",
    "three cold deployments at once, engines that wait for their weights ÷ the slowest of them alone",
)
THREE_REAL_GOAL = Goal(
    "three_real_cold_vs_bare", 1.1, "at_most", "three real cold engines at once ÷ three bare ones at once, best flags"
)

# Engines whose start is waiting, as that of large weights on a disk is: whether Stoker starts them side by side shows
# on any machine. Three real engines on two cores share the cores, however they are started; they are shown beside.
WAITS_S = {"wait1": 0.6, "wait2": 0.8, "wait3": 1.0}
REAL = ("cold1", "cold2", "cold3")


# What can be seen of a bare engine's start, in the order in which it happens.
STEPS = ("interpreter_started", "imported", "listening", "loaded", "healthy")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    sweep_samples: int
    num_finalists: int
    final_samples: int
    dropped_samples: int
    three_samples: int


FULL = Sizes(sweep_samples=3, num_finalists=3, final_samples=12, dropped_samples=10, three_samples=10)
QUICK = Sizes(sweep_samples=1, num_finalists=2, final_samples=3, dropped_samples=2, three_samples=2)


@dataclass(frozen=True, slots=True)
class ColdStart:
    """One start, in milliseconds since the spawn (bare engine) or the request's departure (Stoker).

    Attributes:
        steps: `interpreter`, `imported`, `listening`, `healthy` and the like, as far as they can be seen.
    """

    first_token_ms: float
    text: str
    steps: Mapping[str, float]


def drop_page_cache(files: Sequence[Path]) -> str:
    """Forget what the kernel has cached; the method used.

    As root the whole page cache goes; otherwise the pages of the model file that nobody maps.
    """
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")
    except OSError:
        for file in files:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        return "posix_fadvise(DONTNEED) on the model file"
    return "drop_caches=1 (the whole page cache: model, libraries and interpreter)"


def start_bare(contender: Contender, model: Path) -> ColdStart:
    """Spawn the bare engine, wait for its first token, kill it.

    Raises:
        NotServedError: when there is no first token in time.
    """
    folder = Path(tempfile.mkdtemp(prefix="stb-", dir="/tmp"))
    socket_path, stamps_path = folder / "engine.sock", folder / "stamps"
    command = [
        sys.executable, *contender.interpreter, BARE_ENGINE, str(model), str(socket_path), str(stamps_path),
        json.dumps(dict(contender.flags)),
    ]  # fmt: skip
    address, body = Address(socket_path=str(socket_path)), chat_body("bare", PROMPT, NUM_TOKENS)
    environment = {**os.environ, **contender.environment}
    try:
        with Child(command, output=folder / "log", environment=environment, stop_s=1.0) as child:
            deadline_s = child.started_s + START_S

            def holds(probe: Callable[[], bool]) -> Callable[[], bool]:
                def check() -> bool:
                    if not child.is_alive():
                        raise NotServedError(f"the bare engine exited: {child.said()[-500:]}")
                    return probe()

                return check

            listening_s = wait_until(holds(lambda: is_listening(address)), deadline_s=deadline_s, what="listening")
            healthy_s = wait_until(holds(lambda: is_healthy(address)), deadline_s=deadline_s, what="health")
            answer = stream_chat(address, body, {}, START_S)
            wait_until(holds(lambda: "loaded" in _read(stamps_path)), deadline_s=deadline_s, what="the stamps")
            stamps = dict(line.split() for line in _read(stamps_path).splitlines())
            instants_s = {name: int(ns) / 1e9 for name, ns in stamps.items()}
            instants_s |= {"listening": listening_s, "healthy": healthy_s}
            steps = {name: (instants_s[name] - child.started_s) * 1e3 for name in STEPS}
            return ColdStart((answer.first_token_s - child.started_s) * 1e3, answer.text, steps)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def start_together(starters: Sequence[Callable[[], ColdStart]]) -> float:
    """Begin several starts at the same instant.

    Returns:
        Milliseconds until the last of them had its first token.

    Raises:
        NotServedError: when one had none.
    """
    gate = threading.Barrier(len(starters))

    def begin(starter: Callable[[], ColdStart]) -> tuple[float, float]:
        gate.wait()
        began_s = time.monotonic()
        return began_s, began_s + starter().first_token_ms / 1e3

    with ThreadPoolExecutor(len(starters)) as pool:
        spans = list(pool.map(begin, starters))
    return (max(end_s for _, end_s in spans) - min(began_s for began_s, _ in spans)) * 1e3


class ColdStoker:
    """A Stoker whose deployments are cooled down before each start."""

    def __init__(self, stoker: BenchedStoker) -> None:
        self._stoker = stoker
        self._address = Address(port=stoker.port)

    def start(self, deployment: str) -> ColdStart:
        """Ask a cold deployment and wait for its first token."""
        body = chat_body(deployment, PROMPT, NUM_TOKENS)
        answer = stream_chat(self._address, body, {"authorization": f"Bearer {KEY}"}, START_S)
        steps = {}
        for header in ("x-stoker-cold-start-ms", "x-stoker-queue-ms"):
            if header in answer.headers:
                steps[header.removeprefix("x-stoker-").removesuffix("-ms")] = float(answer.headers[header])
        if not steps.get("cold-start"):
            raise NotServedError(f"{deployment} was not cold: {dict(answer.headers)}")
        return ColdStart((answer.first_token_s - answer.sent_s) * 1e3, answer.text, steps)

    def cool_down(self) -> None:
        """Wait until keep-alive has taken every replica away.

        Raises:
            NotServedError: when one stays.
        """
        deadline_s = time.monotonic() + START_S
        while any(r["status"] != "cold" for r in self._stoker.admin("GET", "/admin/replicas")["replicas"]):
            if time.monotonic() > deadline_s:
                raise NotServedError("a replica outlived its keep-alive")
            time.sleep(0.02)


def _deployments() -> dict[str, Any]:
    at_rest = {"tier": "serverless", "max_replicas": 1, "keep_alive": "50ms"}
    real = {
        name: {"model": DEFAULT_MODEL, **at_rest, "engine": {"context_tokens": CONTEXT_TOKENS, "slots": 1}}
        for name in REAL
    }
    program = str(build("upstream"))
    waiting = {
        name: {
            "model": "stand-in",
            **at_rest,
            "engine": {"kind": "openai", "command": [program, "--port", "{port}", "--start-us", str(wait_s * 1e6)]},
        }
        for name, wait_s in WAITS_S.items()
    }
    return real | waiting


def _figures(starts: Sequence[ColdStart]) -> dict[str, Any]:
    steps = list(dict.fromkeys(name for start in starts for name in start.steps))
    return {
        "first_token_ms": summarise([start.first_token_ms for start in starts], digits=1),
        "steps_p50_ms": {name: round(median([s.steps[name] for s in starts if name in s.steps]), 1) for name in steps},
    }


def _take_turns(
    starters: Mapping[str, Callable[[], ColdStart]], *, samples: int, before_each: Callable[[], object]
) -> dict[str, list[ColdStart]]:
    """Run every starter `samples` times, interleaved, the order turning by one each round."""
    starts: dict[str, list[ColdStart]] = {name: [] for name in starters}
    names = list(starters)
    for turn in range(samples):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            before_each()
            starts[name].append(starters[name]())
    return starts


def _check_same_answer(starts: Mapping[str, Sequence[ColdStart]]) -> None:
    """A contender that answers otherwise does other work, and may not win."""
    texts = {name: {start.text for start in its} for name, its in starts.items()}
    if len(set().union(*texts.values())) > 1:
        raise RuntimeError(f"the contenders' greedy answers differ: {texts}")


def _sweep(model: Path, sizes: Sizes, *, is_quick: bool) -> tuple[tuple[Contender, ...], dict[str, Any]]:
    failures: dict[str, str] = {}

    def measure(contender: Contender) -> float:
        try:
            return start_bare(contender, model).first_token_ms
        except NotServedError as error:
            failures[contender.name] = str(error)[:200]
            return math.inf

    finalists, samples = halve(
        contenders(is_quick=is_quick), measure, samples_a_round=sizes.sweep_samples, num_finalists=sizes.num_finalists
    )
    shown = {
        name: summarise([value for value in values if math.isfinite(value)], digits=1)
        for name, values in sorted(samples.items(), key=lambda item: median(item[1]))
    }
    return finalists, {"contenders": shown, "failed": failures}


def run(*, is_quick: bool, has_peers: bool) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ARG001 - no peer starts the same engine
    """Measure; returns the results and the goals."""
    sizes = QUICK if is_quick else FULL
    model = embedded_model_path()
    model.read_bytes()  # the cache is hot from here
    start_bare(DEFAULTS, model)
    finalists, sweep = _sweep(model, sizes, is_quick=is_quick)
    bare = {c.name: c for c in (DEFAULTS, *finalists)}
    with BenchedStoker(_deployments()) as benched:
        stoker = ColdStoker(benched)
        stoker.start("cold1")  # whatever is done once only is done
        stoker.cool_down()
        starters: dict[str, Callable[[], ColdStart]] = {"stoker": partial(stoker.start, "cold1")}
        for name, contender in bare.items():
            starters[name] = partial(start_bare, contender, model)
        hot = _take_turns(starters, samples=sizes.final_samples, before_each=stoker.cool_down)
        _check_same_answer(hot)
        medians = {name: median([start.first_token_ms for start in its]) for name, its in hot.items()}
        best = min((name for name in bare), key=lambda name: medians[name])

        method = ""

        def forget() -> None:
            nonlocal method
            stoker.cool_down()
            method = drop_page_cache([model])

        few = {name: starters[name] for name in dict.fromkeys(("stoker", "defaults", best))}
        dropped = _take_turns(few, samples=sizes.dropped_samples, before_each=forget)
        model.read_bytes()

        three = _all_threes(stoker, bare[best], model, sizes.three_samples)
    dropped_medians = {name: median([start.first_token_ms for start in its]) for name, its in dropped.items()}
    results = {
        "model": {"name": DEFAULT_MODEL, "file_bytes": model.stat().st_size, "context_tokens": CONTEXT_TOKENS},
        "sweep": sweep,
        "best_flags": {
            "name": best,
            "flags": dict(bare[best].flags),
            "interpreter": list(bare[best].interpreter),
            "environment": dict(bare[best].environment),
        },
        "hot": {name: _figures(its) for name, its in hot.items()},
        "dropped": {name: _figures(its) for name, its in dropped.items()},
        "dropped_how": method,
        "three_at_once": three,
        "ratio_to_best_flags": round(medians["stoker"] / medians[best], 3),
        "ratio_to_defaults": round(medians["stoker"] / medians["defaults"], 3),
        "ratio_to_best_flags_dropped": round(dropped_medians["stoker"] / dropped_medians[best], 3),
        "ratio_to_defaults_dropped": round(dropped_medians["stoker"] / dropped_medians["defaults"], 3),
    }
    goals = {
        BEST_FLAGS_GOAL.key: BEST_FLAGS_GOAL.check(medians["stoker"] / medians[best]),
        THREE_GOAL.key: THREE_GOAL.check(three["waiting_engines"]["ratio"]),
        THREE_REAL_GOAL.key: THREE_REAL_GOAL.check(three["real_vs_bare"]),
    }
    return results, goals


def _three_at_once(
    alone: Mapping[str, Callable[[], ColdStart]], *, samples: int, before_each: Callable[[], object]
) -> dict[str, Any]:
    """Start each alone, then all together, and again."""
    together_ms: list[float] = []
    alone_ms: dict[str, list[float]] = {name: [] for name in alone}
    for _ in range(samples):
        for name, starter in alone.items():
            before_each()
            alone_ms[name].append(starter().first_token_ms)
        before_each()
        together_ms.append(start_together(list(alone.values())))
    slowest_ms = max(median(its) for its in alone_ms.values())
    return {
        "until_all_have_a_token_ms": summarise(together_ms, digits=1),
        "alone_ms": {name: summarise(its, digits=1) for name, its in alone_ms.items()},
        "slowest_alone_p50_ms": round(slowest_ms, 1),
        "ratio": round(median(together_ms) / slowest_ms, 3),
    }


def _all_threes(stoker: ColdStoker, best: Contender, model: Path, samples: int) -> dict[str, Any]:
    def three(starters: Mapping[str, Callable[[], ColdStart]]) -> dict[str, Any]:
        return _three_at_once(starters, samples=samples, before_each=stoker.cool_down)

    # Six threads on two cores may be slower or faster than three: the bare engine gets the better of the two.
    one_thread = {**best.flags, "cpuparams.n_threads": 1, "cpuparams_batch.n_threads": 1}
    bare = {
        settings: three({f"bare{number}": partial(start_bare, contender, model) for number in (1, 2, 3)})
        for settings, contender in {
            "best flags": replace(best, environment=PASSIVE),
            "best flags, one thread": replace(best, flags=one_thread, environment=PASSIVE),
        }.items()
    }
    real = three({name: partial(stoker.start, name) for name in REAL})
    fastest_ms = min(figures["until_all_have_a_token_ms"]["p50"] for figures in bare.values())
    return {
        "waiting_engines": three({name: partial(stoker.start, name) for name in WAITS_S}),
        "real_engines": real,
        "bare_engines": bare,
        "real_vs_bare": round(real["until_all_have_a_token_ms"]["p50"] / fastest_ms, 3),
        "num_cores": len(os.sched_getaffinity(0)),
    }
