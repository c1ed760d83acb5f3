"""Ends a request's waits when its client leaves or its deadline passes. Touches the running task and its timers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Literal

from stoker.gateway.wire import ClientWire

Reason = Literal["disconnected", "timed_out"]
_COARSE_S: Final = 30.0  # deadlines farther than this are looked at once a second, by one timer for all of them
_LOOK_S: Final = 1.0


class DeadlineWatch:
    """One timer for all distant deadlines: a timer for each request would cost more than the request's parsing."""

    def __init__(self) -> None:
        self._due_s: dict[Interruption, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, interruption: Interruption, timeout_s: float) -> None:
        """Expire `interruption` after `timeout_s` seconds, at most `_LOOK_S` late."""
        loop = asyncio.get_running_loop()
        self._due_s[interruption] = loop.time() + timeout_s
        if self._timer is None:
            self._timer = loop.call_later(_LOOK_S, self._look, loop)

    def drop(self, interruption: Interruption) -> None:
        """Forget it; unknown ones are ignored."""
        self._due_s.pop(interruption, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for interruption in [one for one, due_s in self._due_s.items() if due_s <= now_s]:
            del self._due_s[interruption]
            interruption.expire()
        self._timer = loop.call_later(_LOOK_S, self._look, loop) if self._due_s else None


class Interruption:
    """Cancels one task for a reason that the task can tell from anybody else's cancellation.

    This is how `asyncio.timeout` works: `take` uncancels, so nobody else's cancellation is ever swallowed. Where the
    server offers its wire no task is needed to watch the client.
    """

    __slots__ = ("_deadlines", "_is_armed", "_reason", "_task", "_timer", "_watcher")

    def __init__(self, deadlines: DeadlineWatch) -> None:
        self._deadlines = deadlines
        self._is_armed = False
        self._reason: Reason | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    def arm(
        self,
        wire: ClientWire | None,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        *,
        timeout_s: float,
    ) -> None:
        """Start to watch on behalf of the current task, whose request has been read whole."""
        self._task = asyncio.current_task()
        self._is_armed = True
        if timeout_s > _COARSE_S:
            self._deadlines.add(self, timeout_s)
        else:
            self._timer = asyncio.get_running_loop().call_later(timeout_s, self.expire)
        if wire is not None:
            wire.watch(self._leave)
        else:
            self._watcher = asyncio.get_running_loop().create_task(self._watch(receive))

    def disarm(self) -> None:
        """Let nothing interrupt the task from here on. A second call does nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._is_armed:
            self._deadlines.drop(self)
        self._is_armed = False
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    def take(self) -> Reason | None:
        """Return why we cancelled the task and undo it; None when the cancellation is, or is also, somebody else's."""
        if self._reason is None or self._task is None or self._task.uncancel() > 0:
            return None
        return self._reason

    def expire(self) -> None:
        """The deadline passed."""
        self._fire("timed_out")

    def _leave(self) -> None:
        self._fire("disconnected")

    def _fire(self, reason: Reason) -> None:
        if self._is_armed and self._task is not None:
            self._deadlines.drop(self)
            self._is_armed = False
            self._reason = reason
            self._task.cancel()

    async def _watch(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._leave()
