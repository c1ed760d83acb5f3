"""Which Host and Origin headers this endpoint answers to: the guard against DNS rebinding and foreign pages. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

_WILDCARDS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not bound to
_MAX_REMEMBERED = 1024  # verdicts; a stranger must not grow the memo without bound


def host_name(authority: str) -> str:
    """Return the lower-case host of `host[:port]`, IPv6 without its brackets, a final dot dropped."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower().rstrip(".")


def _as_ip(host: str) -> bool | None:
    """Return whether an IP literal is loopback, None when `host` is a name."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return None


def is_loopback_host(host: str) -> bool:
    """Tell whether binding to `host` keeps the endpoint on this machine."""
    return host == "localhost" or host.endswith(".localhost") or _as_ip(host) is True


class HostPolicy:
    """Answers for loopback names, the bound host and the configured ones.

    Bound to every address, IP literals are accepted as well: rebinding needs a name, and a browser that was given an
    IP sends that IP.

    Args:
        bind_host: as in `server.host`.
        allowed_hosts: further names, without ports; `*.example.org` allows every name below it.
    """

    def __init__(self, bind_host: str, allowed_hosts: Iterable[str] = ()) -> None:
        self._is_wildcard = bind_host in _WILDCARDS
        names = {host_name(name) for name in allowed_hosts}
        self._suffixes = (".localhost", *(name[1:] for name in names if name.startswith("*.")))
        self._names = names | {host_name(bind_host) if ":" not in bind_host else bind_host.lower(), "localhost"}
        self._verdicts: dict[bytes, bool] = {}

    def allows_host(self, authority: bytes) -> bool:
        """Tell whether a Host header names this endpoint."""
        verdict = self._verdicts.get(authority)
        if verdict is None:
            verdict = self._judge(host_name(authority.decode("latin-1")))
            if len(self._verdicts) < _MAX_REMEMBERED:
                self._verdicts[authority] = verdict
        return verdict

    def allows_origin(self, origin: bytes, authority: bytes) -> bool:
        """Tell whether an Origin is the very host that is asked: pages of ours, nobody else's (`null` neither)."""
        scheme, separator, rest = origin.partition(b"://")
        return bool(separator) and scheme in {b"http", b"https"} and rest.lower() == authority.lower()

    def _judge(self, host: str) -> bool:
        if host in self._names or host.endswith(self._suffixes):
            return True
        is_loopback_ip = _as_ip(host)
        return is_loopback_ip is True or (is_loopback_ip is False and self._is_wildcard)
