"""Ends a request's waits when its client leaves or its deadline passes. Touches the running task and its timers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal

Reason = Literal["disconnected", "timed_out"]
# Extension of our own server: register a callback that is called once, when the client's connection is lost.
ON_DISCONNECT = "stoker.on_disconnect"


class Interruption:
    """Cancels one task for a reason that the task can tell from anybody else's cancellation.

    This is how `asyncio.timeout` works: `take` uncancels, so nobody else's cancellation is ever swallowed. Where the
    server offers `ON_DISCONNECT` no task is needed to watch the client.
    """

    __slots__ = ("_is_armed", "_reason", "_task", "_timer", "_watcher")

    def __init__(self) -> None:
        self._is_armed = False
        self._reason: Reason | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    def arm(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        *,
        timeout_s: float,
    ) -> None:
        """Start to watch on behalf of the current task, whose request has been read whole."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._is_armed = True
        self._timer = loop.call_later(timeout_s, self._fire, "timed_out")
        register = (scope.get("extensions") or {}).get(ON_DISCONNECT)
        if register is not None:
            register(self._on_disconnect)
        else:
            self._watcher = loop.create_task(self._watch(receive))

    def disarm(self) -> None:
        """Let nothing interrupt the task from here on. A second call does nothing."""
        self._is_armed = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    def take(self) -> Reason | None:
        """Return why we cancelled the task and undo it; None when the cancellation is, or is also, somebody else's."""
        if self._reason is None or self._task is None or self._task.uncancel() > 0:
            return None
        return self._reason

    def _on_disconnect(self) -> None:
        self._fire("disconnected")

    def _fire(self, reason: Reason) -> None:
        if self._is_armed and self._task is not None:
            self._is_armed = False
            self._reason = reason
            self._task.cancel()

    async def _watch(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._fire("disconnected")
