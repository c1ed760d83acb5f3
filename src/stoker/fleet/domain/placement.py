"""The node's budget: what is set aside, what is free, and the arithmetic that a refusal shows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resources:
    """Memory in bytes and whole GPUs."""

    memory_bytes: int = 0
    gpus: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.memory_bytes + other.memory_bytes, self.gpus + other.gpus)

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.memory_bytes - other.memory_bytes, self.gpus - other.gpus)

    def __mul__(self, times: int) -> Resources:
        return Resources(self.memory_bytes * times, self.gpus * times)

    def fits_in(self, room: Resources) -> bool:
        return self.memory_bytes <= room.memory_bytes and self.gpus <= room.gpus

    def or_more(self, other: Resources) -> Resources:
        """Return the larger of each."""
        return Resources(max(self.memory_bytes, other.memory_bytes), max(self.gpus, other.gpus))


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a deployment wants set aside: its dedicated replicas, or a serverless deployment's `min_replicas`."""

    deployment: str
    kind: str
    per_replica: Resources
    num_replicas: int

    @property
    def total(self) -> Resources:
        return self.per_replica * self.num_replicas


@dataclass(frozen=True, slots=True)
class Placement:
    """Which reservations fit.

    Attributes:
        placed: by deployment.
        unplaced: the arithmetic of those that do not fit, by deployment.
    """

    placed: Mapping[str, Reservation]
    unplaced: Mapping[str, str]


def place(pool: Resources, wanted: Iterable[Reservation]) -> Placement:
    """Set aside in the order given; what does not fit is left out and says why.

    Args:
        pool: the node's total less the reserve of the system.
    """
    placed: dict[str, Reservation] = {}
    unplaced: dict[str, str] = {}
    free = pool
    for each in wanted:
        if each.num_replicas == 0:
            continue
        if each.total.fits_in(free):
            placed[each.deployment] = each
            free = free - each.total
        else:
            unplaced[each.deployment] = arithmetic(each.deployment, each.total, pool, placed.values())
    return Placement(placed, unplaced)


def arithmetic(deployment: str, need: Resources, pool: Resources, reserved: Iterable[Reservation]) -> str:
    """Write `c needs 331 MiB; pool 2.0 GiB − dedicated a 1.2 GiB = 819 MiB free`."""
    others = [each for each in reserved if each.deployment != deployment]
    free = pool
    for each in others:
        free = free - each.total
    terms = "".join(f" − {each.kind} {each.deployment} {format_bytes(each.total.memory_bytes)}" for each in others)
    rest = f" = {format_bytes(free.memory_bytes)} free" if others else ""
    text = f"{deployment} needs {format_bytes(need.memory_bytes)}; pool {format_bytes(pool.memory_bytes)}{terms}{rest}"
    if need.gpus > free.gpus:
        taken = "".join(f" − {each.kind} {each.deployment} {each.total.gpus}" for each in others if each.total.gpus)
        text += f"; needs {need.gpus} GPUs of {pool.gpus}{taken} = {free.gpus} free"
    return text


def format_bytes(size_bytes: int) -> str:
    """Write `331 MiB` or `1.2 GiB`."""
    sign, size = ("−", -size_bytes) if size_bytes < 0 else ("", size_bytes)
    if size >= 2**30:
        return f"{sign}{size / 2**30:.1f} GiB"
    if size >= 2**20:
        return f"{sign}{size / 2**20:.0f} MiB"
    return f"{sign}{size / 2**10:.0f} KiB" if size >= 2**10 else f"{sign}{size} B"


def threads_per_replica(cores: int, num_live: int, declared: int | None) -> int:
    """Split the cores among the replicas that live, this one included: spinning threads ruin their neighbours."""
    return declared if declared is not None else max(1, cores // max(1, num_live))
