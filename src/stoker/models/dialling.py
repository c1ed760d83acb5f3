"""Outgoing connections: resolve once, connect to that address, and to public ones only. Touches the network.

A name is resolved by the connector itself and the connection goes to what was resolved, so no second answer of a
hostile name server can lead elsewhere. Every redirect is checked again by whoever follows it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from stoker.errors import ModelUnavailable

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressRefused(ModelUnavailable):
    """A host that must not be asked: its address is private, link-local, loopback or otherwise not public."""


def is_public(address: str) -> bool:
    """Tell whether an IP address is a public one; addresses that carry another (mapped, 6to4, …) are unwrapped."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def check_host(host: str, *, allow_private: bool) -> None:
    """Refuse a host that is written as an address which is not public.

    Raises:
        AddressRefused: names the host and the mend.
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return  # a name: the resolver judges it
    if not allow_private and not is_public(host):
        raise _refused(host, host)


def _refused(host: str, address: str) -> AddressRefused:
    where = host if host == address else f"{host} ({address})"
    return AddressRefused(
        f"{where} is not a public address",
        mend="if you trust that host, write `allow_private: true` beside the model's source in the configuration file",
    )


class CheckedResolver(AbstractResolver):
    """Resolves names and refuses those with any address that is not public."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        results: list[ResolveResult] = []
        for found_family, _, protocol, _, sockaddr in found:
            address = str(sockaddr[0])
            if not self._allow_private and not is_public(address):
                raise _refused(host, address)
            result = ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            results.append(result)
        return results

    async def close(self) -> None:
        """Nothing is held."""


def open_session(*, allow_private: bool, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """Return a client session that dials as this module says; the caller closes it."""
    connector = aiohttp.TCPConnector(
        resolver=CheckedResolver(allow_private=allow_private), ssl=ssl.create_default_context(), limit=4
    )
    return aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
    )
