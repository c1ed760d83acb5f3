"""From a declared deployment to something that can be launched: engine, weights, memory need, fingerprint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from stoker.config.settings import DeploymentSettings
from stoker.errors import BadRequest, InsufficientMemory
from stoker.fleet.domain.placement import Reservation, Resources, arithmetic, place
from stoker.fleet.ports import Engine
from stoker.fleet.roster import Roster, launch_fingerprint, reservation
from stoker.fleet.supervisor import LaunchPlan
from stoker.models.files import ModelFile

ModelFiles = Callable[[str], Awaitable[ModelFile | None]]


class Preparation:
    """Resolves models and asks engines what they need.

    Args:
        model_files: by model name; None for a model whose weights somebody else holds. Raises `ModelUnavailable`.
    """

    def __init__(self, engines: Mapping[str, Engine], model_files: ModelFiles) -> None:
        self._engines = engines
        self._model_files = model_files

    async def prepare(
        self, name: str, settings: DeploymentSettings, models: Mapping[str, ModelFile | None]
    ) -> LaunchPlan:
        """Return what replicas of this deployment are launched from.

        Raises:
            ModelUnavailable: the weights cannot be had.
            BadRequest: no adapter for this kind of engine.
        """
        engine = self._engines.get(settings.engine.kind)
        if engine is None:
            known = ", ".join(sorted(self._engines)) or "none"
            raise BadRequest(f"{name}: there is no engine {settings.engine.kind!r}; known: {known}")
        model = models[settings.model] if settings.model in models else await self._model_files(settings.model)
        need = engine.memory_need(settings, model)
        total_bytes = settings.memory if settings.memory is not None else need.total_bytes
        words = need.arithmetic if settings.memory is None else "declared by `memory`"
        return LaunchPlan(
            settings=settings,
            engine=engine,
            model=model,
            need=Resources(total_bytes, settings.gpus),
            need_arithmetic=words,
            surfaces=engine.surfaces(settings, model),
            fingerprint=launch_fingerprint(settings, model),
        )


def check_room(roster: Roster, wanted: Mapping[str, DeploymentSettings], prepared: Mapping[str, LaunchPlan]) -> None:
    """Refuse a change whose reservation, or whose single replica, can never fit.

    Raises:
        InsufficientMemory: with the arithmetic; deployments that did not fit before are not complained about.
    """
    reservations: list[Reservation] = []
    for name, settings in wanted.items():
        known = roster.find(name)
        if name in prepared:
            kind, count = (
                ("dedicated", settings.replicas)
                if settings.tier == "dedicated"
                else (
                    "min_replicas",
                    settings.min_replicas,
                )
            )
            reservations.append(Reservation(name, kind, prepared[name].need, count))
        elif known is not None and known.launch is not None:
            reservations.append(reservation(known))
    placement = place(roster.pool, reservations)
    for name, launch in prepared.items():
        if not launch.need.fits_in(roster.pool):
            words = arithmetic(name, launch.need, roster.pool, ())
            raise InsufficientMemory(f"{words} ({launch.need_arithmetic})")
        if name in placement.unplaced:
            raise InsufficientMemory(f"{placement.unplaced[name]} ({launch.need_arithmetic} a replica)")
