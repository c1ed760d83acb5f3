"""What is declared and what is: the file's deployments, the runtime changes over them, and every way to change them.

Touches the override store and the configuration loader that it is given. One change at a time; each is checked as a
whole, stored, and only then acted upon. A change that the fleet refuses is taken back in the store.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Literal, Protocol, TypeVar

from stoker.clock import Clock
from stoker.config.checks import DEDICATED_ONLY, SERVERLESS_ONLY
from stoker.config.effective import ApplyPlan, Change, diff, merge, plan_apply, tier_patch
from stoker.config.loading import Loaded
from stoker.config.patches import make_patch, merge_patch, same
from stoker.config.settings import DeploymentSettings, KeySettings, ModelSettings, Settings
from stoker.errors import BadRequest, ConfigInvalid, Conflict, NotFound, StokerError
from stoker.fleet.declaration import (
    Applied,
    ApplyRefused,
    Author,
    DeploymentView,
    Drift,
    EtagMismatch,
    State,
    applied_text,
    build,
    checked,
    etag_of,
    patches_of,
    source_of,
    with_runtime_parts,
)
from stoker.ledger.ports import OverrideStore
from stoker.ledger.records import Override
from stoker.models.catalogue import catalogue
from stoker.models.files import ModelFile

log = logging.getLogger(__name__)

Tier = Literal["serverless", "dedicated"]
ApplyMode = Literal["keep", "discard"]
_T = TypeVar("_T")


class Reconciler(Protocol):
    """The part of `FleetControl` that a change needs."""

    async def reconcile(
        self, deployments: Mapping[str, DeploymentSettings], models: Mapping[str, ModelFile | None] | None = None
    ) -> None: ...


class Deployments:
    """Owns the table of deployments; the fleet only follows it.

    Args:
        loaded: the configuration as it was read at this start.
        reload: reads the same configuration from disk again; blocking, called in a thread.
        model_files: weights by model name, asked for when `apply` changes where a model comes from.
        on_applied: takes up what else a file says, such as keys; told again of the former file when an `apply` fails.
    """

    def __init__(
        self,
        *,
        loaded: Loaded,
        reload: Callable[[], Loaded],
        store: OverrideStore,
        fleet: Reconciler,
        clock: Clock,
        model_files: Callable[[str], Awaitable[ModelFile | None]] | None = None,
        on_applied: Callable[[Loaded], Awaitable[None]] | None = None,
    ) -> None:
        self._loaded = loaded
        self._reload = reload
        self._store = store
        self._fleet = fleet
        self._clock = clock
        self._model_files = model_files
        self._on_applied = on_applied
        self._state = State(loaded.declared, {}, loaded.settings)
        self._candidate: State | None = None
        self._changing = asyncio.Lock()
        self._background: set[asyncio.Task[Any]] = set()

    # ------------------------------------------------------------------ start

    async def restore(self) -> tuple[Change, ...]:
        """Come back to what ran before the restart, without acting on it.

        Deployments and models are those of the file that was *applied* last, with the runtime changes over them: an
        edit of the file waits for `apply`. Another file, or another environment, is applied at once.

        Returns:
            What the file says by now and has not been applied; the caller tells the operator.

        Raises:
            ConfigInvalid: runtime changes no longer fit this configuration.
            LedgerUnavailable: the store failed.
        """
        overrides = {each.deployment: each for each in await self._store.list_overrides()}
        stored = await self._store.declared()
        applied = dict(self._loaded.declared)
        if stored is not None:
            former = json.loads(stored)
            if former["source"] == source_of(self._loaded):
                applied = with_runtime_parts(applied, former["declared"])
            else:
                plan = plan_apply(former["declared"], applied, patches_of(overrides), resolution="keep")
                overrides = await self._store_plan(plan, overrides, Author("start", "another file was given"))
        try:
            self._state = build(applied, overrides)
        except ConfigInvalid as exc:
            mend = f"start with the file they were made on, or with another --state-dir ({len(overrides)} changes)"
            raise ConfigInvalid(exc.problems, mend=f"these runtime changes do not fit the file: {mend}") from exc
        await self._store.set_declared(applied_text(self._loaded, applied))
        return diff(applied, self._loaded.declared)

    # ------------------------------------------------------------------ reading

    @property
    def settings(self) -> Settings:
        """The effective models and deployments; `keys` is empty, because keys are the file's and the key store's."""
        return self._state.settings

    @property
    def path(self) -> str | None:
        """The configuration file, None with the embedded default, which cannot be applied again."""
        return None if self._loaded.path is None else str(self._loaded.path)

    @property
    def environment(self) -> str | None:
        """Whose overlay lies over the file."""
        return self._loaded.environment

    @property
    def file_keys(self) -> tuple[KeySettings, ...]:
        """The client keys of the file that was applied last."""
        return self._loaded.settings.keys

    def list(self) -> tuple[DeploymentView, ...]:
        """Return all deployments by name."""
        return tuple(self.get(name) for name in sorted(self._state.settings.deployments))

    def get(self, name: str) -> DeploymentView:
        """Return one deployment. Raises `NotFound`."""
        settings = self._state.settings.deployments.get(name)
        if settings is None:
            known = ", ".join(sorted(self._state.settings.deployments)) or "none"
            raise NotFound(f"there is no deployment {name!r} (deployments: {known})", mend="see `stoker ps`")
        declared, override = self._state.declared(name), self._state.overrides.get(name)
        return DeploymentView(name, settings, etag_of(settings), declared is not None, override)

    def model_settings(self, name: str) -> ModelSettings:
        """Return where a model comes from, by the configuration or the catalogue; a change under way counts already.

        Raises:
            NotFound: neither knows it.
        """
        settings = (self._candidate or self._state).settings
        if (declared := settings.models.get(name)) is not None:
            return declared
        entry = catalogue(settings.models).get(name)
        if entry is None:
            raise NotFound(f"there is no model {name!r}", mend="name its source under `models:`")
        return ModelSettings(source=entry.source, sha256=entry.sha256, licence=entry.licence)

    async def drift(self) -> Drift:
        """Compare the file on disk now with what runs.

        Raises:
            ConfigInvalid: the file does not load any more.
        """
        file = (await asyncio.to_thread(self._reload)).declared
        state = self._state
        live = merge(state.applied, patches_of(state.overrides))
        return Drift(diff(file, live), diff(state.applied, file), tuple(state.overrides.values()))

    # ------------------------------------------------------------------ changing

    async def create(self, name: str, settings: Mapping[str, Any], *, author: Author) -> DeploymentView:
        """Add a deployment.

        Raises:
            Conflict: the name is taken.
            Forbidden: it holds what only the file may (`command`, `exec:`, …).
            ConfigInvalid, ModelUnavailable, InsufficientMemory: it cannot be; nothing was changed.
        """

        async def act() -> DeploymentView:
            if name in self._state.settings.deployments:
                raise Conflict(f"there is a deployment {name!r} already", mend="choose another name")
            await self._change(name, merge_patch({}, checked(settings)), author)
            return self.get(name)

        return await self._serially(act())

    async def patch(
        self, name: str, patch: Mapping[str, Any], *, author: Author, if_match: str | None = None
    ) -> DeploymentView:
        """Lay an RFC 7386 merge patch over a deployment's effective settings.

        Args:
            if_match: refuse unless this is the present ETag; None: whatever it is.

        Raises:
            NotFound, EtagMismatch, Forbidden, ConfigInvalid, ModelUnavailable, InsufficientMemory
        """
        return await self._serially(self._patch(name, lambda _: patch, author, if_match))

    async def move(
        self, name: str, tier: Tier, *, author: Author, if_match: str | None = None, **fields: Any
    ) -> DeploymentView:
        """Put a deployment on a tier, behind the same name; replicas follow, make before break.

        Fields of the other tier are dropped; those that the file declares for this tier come back unless `fields`
        (`replicas`, `tenants`, `min_replicas`, `max_replicas`, `keep_alive`) says otherwise.

        Raises:
            As `patch`.
        """

        def patch(effective: Mapping[str, Any]) -> Mapping[str, Any]:
            own = DEDICATED_ONLY if tier == "dedicated" else SERVERLESS_ONLY
            declared = self._state.declared(name) or {}
            back = {} if effective.get("tier", "serverless") == tier else {k: declared[k] for k in own if k in declared}
            return tier_patch(tier, **{**back, **{k: v for k, v in fields.items() if v is not None}})

        return await self._serially(self._patch(name, patch, author, if_match))

    async def scale(
        self,
        name: str,
        *,
        author: Author,
        replicas: int | None = None,
        min_replicas: int | None = None,
        max_replicas: int | None = None,
        if_match: str | None = None,
    ) -> DeploymentView:
        """Change how many replicas there are.

        dedicated: `replicas`. serverless: `min_replicas` and `max_replicas`; `replicas` keeps that many warm there,
        raising the maximum where needed.

        Raises:
            BadRequest: nothing was given, or what belongs to the other tier; else as `patch`.
        """
        if replicas is None and min_replicas is None and max_replicas is None:
            raise BadRequest("nothing to scale", mend="give replicas, or min_replicas and max_replicas")

        def patch(_: Mapping[str, Any]) -> Mapping[str, Any]:
            settings = self._state.settings.deployments[name]
            if settings.tier == "dedicated":
                if min_replicas is not None or max_replicas is not None:
                    raise BadRequest(f"{name} is dedicated and has `replicas` only", mend="give replicas")
                return {"replicas": replicas}
            if replicas is not None:
                if min_replicas is not None:
                    raise BadRequest("`replicas` means `min_replicas` on serverless; give one of them")
                ceiling = settings.max_replicas if max_replicas is None else max_replicas
                return {"min_replicas": replicas, "max_replicas": max(ceiling, replicas, 1)}
            wanted = {"min_replicas": min_replicas, "max_replicas": max_replicas}
            return {key: value for key, value in wanted.items() if value is not None}

        return await self._serially(self._patch(name, patch, author, if_match))

    async def delete(self, name: str, *, author: Author, if_match: str | None = None) -> None:
        """Take a deployment away; streams in flight go on to their end.

        Raises:
            NotFound, EtagMismatch
        """

        async def act() -> None:
            self._match(name, if_match)
            await self._change(name, None, author)

        await self._serially(act())

    async def apply(self, mode: ApplyMode | None, *, author: Author, is_dry_run: bool = False) -> Applied:
        """Read the file again and take the three-way step to it.

        Args:
            mode: who wins where file and runtime changes disagree; `discard` ends *all* runtime changes.

        Raises:
            ApplyRefused: they disagree, `mode` is None and this is no dry run; nothing was changed.
            ConfigInvalid: the file, or what it comes to with the runtime changes, is invalid.
            ModelUnavailable, InsufficientMemory: it cannot be; nothing was changed.
        """
        return await self._serially(self._apply(mode, author, is_dry_run))

    # ------------------------------------------------------------------ steps of a change

    async def _serially(self, change: Coroutine[Any, Any, _T]) -> _T:
        """Run one change at a time, to its end even when the caller goes away in the middle of it."""

        async def locked() -> _T:
            async with self._changing:
                return await change

        task = asyncio.create_task(locked())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return await asyncio.shield(task)

    def _match(self, name: str, if_match: str | None) -> None:
        etag = self.get(name).etag
        if if_match is not None and if_match != etag:
            raise EtagMismatch(
                f"deployment {name!r} has changed: its ETag is {etag}, not {if_match}", mend="read it again"
            )

    async def _patch(
        self,
        name: str,
        patch: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        author: Author,
        if_match: str | None,
    ) -> DeploymentView:
        self._match(name, if_match)
        effective = merge(self._state.applied, patches_of(self._state.overrides))["deployments"][name]
        await self._change(name, merge_patch(effective, checked(patch(effective))), author)
        return self.get(name)

    async def _change(self, name: str, desired: Any, author: Author) -> None:
        """Store and act on what one deployment shall be; None takes it away."""
        before = self._state
        declared = before.declared(name)
        overrides = dict(before.overrides)
        overrides[name] = Override(
            name,
            json.dumps(make_patch(declared, desired)),
            json.dumps(declared),
            author.name,
            author.reason,
            self._now_us(),
        )
        after = build(before.applied, overrides)
        by_file = None if declared is None else DeploymentSettings.model_validate(declared)
        says_nothing = after.settings.deployments.get(name) == by_file
        if says_nothing:
            del overrides[name]
            after = build(before.applied, overrides)
        try:
            if says_nothing:
                await self._forget(name, author)
            else:
                await self._store.put_override(overrides[name])
            await self._act(after)
        except BaseException:
            # The store goes back to what runs, so that a restart agrees with it.
            await self._put_back(before)
            raise
        log.info("deployment.changed", extra={"deployment": name, "author": author.name, "reason": author.reason})

    async def _apply(self, mode: ApplyMode | None, author: Author, is_dry_run: bool) -> Applied:
        loaded = await asyncio.to_thread(self._reload)
        before = self._state
        plan = plan_apply(before.applied, loaded.declared, patches_of(before.overrides), resolution=mode or "refuse")
        late = tuple(change for change in plan.changes if change.path[:1] in {("server",), ("node",)})
        if is_dry_run:
            return Applied(plan, True, late)
        if plan.is_refused:
            raise ApplyRefused(plan.conflicts)
        after = build(loaded.declared, self._planned(plan, before.overrides))
        sources = {name for name, model in after.settings.models.items() if before.settings.models.get(name) != model}
        try:
            await self._take_up(loaded)
            await self._store_plan(plan, before.overrides, author)
            await self._store.set_declared(applied_text(loaded, loaded.declared))
            models = await self._fetched(after, sources)
            await self._act(after, models)
        except BaseException:
            await self._undo_apply(before)
            raise
        self._loaded = loaded
        log.info("configuration.applied", extra={"changes": len(plan.changes), "dropped": len(plan.dropped)})
        return Applied(plan, False, late)

    async def _take_up(self, loaded: Loaded) -> None:
        if self._on_applied is not None:
            await self._on_applied(loaded)

    async def _fetched(self, after: State, sources: set[str]) -> dict[str, ModelFile | None]:
        """Fetch the models whose source changed and that somebody deploys."""
        if self._model_files is None:
            return {}
        used = sources & {each.model for each in after.settings.deployments.values()}
        self._candidate = after
        try:
            return {name: await self._model_files(name) for name in sorted(used)}
        finally:
            self._candidate = None

    async def _act(self, after: State, models: Mapping[str, ModelFile | None] | None = None) -> None:
        self._candidate = after
        try:
            await self._fleet.reconcile(after.settings.deployments, models)
        finally:
            self._candidate = None
        self._state = after

    async def _put_back(self, before: State) -> None:
        """Make the store hold these runtime changes again. What fails here is logged; the caller's error goes out."""
        try:
            now = {each.deployment: each for each in await self._store.list_overrides()}
            for name in sorted({*before.overrides, *now}):
                former = before.overrides.get(name)
                if former is None:
                    await self._forget(name, Author("stoker", "undone: the change was refused"))
                elif former != now.get(name):
                    await self._store.put_override(former)
        except StokerError:
            log.exception("override.not_undone")

    async def _undo_apply(self, before: State) -> None:
        await self._put_back(before)
        try:
            await self._store.set_declared(applied_text(self._loaded, before.applied))
            await self._take_up(self._loaded)
        except StokerError:
            log.exception("configuration.not_undone")

    async def _forget(self, name: str, author: Author) -> None:
        await self._store.discard_override(name, author=author.name, reason=author.reason, at_us=self._now_us())

    def _planned(self, plan: ApplyPlan, overrides: Mapping[str, Override]) -> dict[str, Override]:
        """Return the runtime changes that live on, each with its own author and reason."""
        kept: dict[str, Override] = {}
        for each in plan.patches:
            former = overrides[each.deployment]
            patch, base = json.dumps(each.patch), json.dumps(each.base)
            is_same = same(json.loads(former.patch), each.patch) and same(json.loads(former.base), each.base)
            kept[each.deployment] = (
                former
                if is_same
                else Override(each.deployment, patch, base, former.author, former.reason, self._now_us())
            )
        return kept

    async def _store_plan(
        self, plan: ApplyPlan, overrides: Mapping[str, Override], author: Author
    ) -> dict[str, Override]:
        kept = self._planned(plan, overrides)
        for name, override in kept.items():
            if override is not overrides[name]:
                await self._store.put_override(override)
        for name in plan.dropped:
            await self._forget(name, author)
        return kept

    def _now_us(self) -> int:
        return int(self._clock.now().timestamp() * 1_000_000)
