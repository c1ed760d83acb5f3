"""Who leaves memory, and when: keep-alive for the idle, a quantum for the busy when others wait. Pure."""

from __future__ import annotations

AUTO_KEEP_ALIVE_S = 300.0  # what `keep_alive: auto` means: llama.cpp users know Ollama's five minutes
FAIR_QUANTUM_S = 10.0  # how long a busy replica may serve on while another deployment waits for its memory
PROMISE_SLACK_S = 3.0  # `Retry-After` is rounded up to a whole second, and the client and the network take their time
LINGER_RATIO = 0.5  # of its own cold start: an idle moment between two requests is no reason for a swap


def keep_alive_s(policy: str | float) -> float:
    """Return the idle seconds that a `keep_alive` setting allows."""
    return AUTO_KEEP_ALIVE_S if isinstance(policy, str) else policy


def idle_exit(policy: str | float, idle_since_s: float, now_s: float, promised_at_s: float | None = None) -> float:
    """Return the seconds until an idle replica leaves `ready`; 0.0 means now.

    A keep-alive shorter than a `Retry-After` that was given would end the replica before whoever was told to come back
    then, every time anew: the promise holds it until a little after that moment.

    Args:
        policy: `auto` or seconds.
        idle_since_s: the END of its last request (or its readiness when it never had one).
        promised_at_s: when the last refused client was told to come back, None when nobody was.
    """
    leave_at_s = idle_since_s + keep_alive_s(policy)
    if promised_at_s is not None:
        leave_at_s = max(leave_at_s, promised_at_s + PROMISE_SLACK_S)
    return max(0.0, leave_at_s - now_s)


def may_leave_at_s(ready_since_s: float, idle_since_s: float | None, start_s: float, quantum_s: float) -> float:
    """Return when a serverless replica may make room for a deployment that waits for memory.

    A busy one is drained after it has served for a quantum. An idle one goes as soon as it has been idle for half of
    what bringing it back would cost, and at the end of its quantum at the latest.

    Args:
        idle_since_s: None while it is busy or its own deployment has requests queued.
        start_s: its learned cold start.
    """
    quantum_end_s = ready_since_s + quantum_s
    if idle_since_s is None:
        return quantum_end_s
    return min(idle_since_s + LINGER_RATIO * start_s, max(quantum_end_s, idle_since_s))
