"""Client keys: from a presented secret to its principal. Reads the key store on `refresh`; else memory only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from stoker.errors import Unauthenticated
from stoker.gateway.domain.access import LOCAL, Principal
from stoker.ledger.ports import KeyStore

_MAX_SECRET_BYTES = 1024


@dataclass(frozen=True, slots=True)
class ConfiguredKey:
    """A key of `stoker.yaml`, its secret already resolved and hashed.

    Attributes:
        sha256: of the whole secret, hexadecimal.
        deployments: allow-list; empty: all that the tenant may use.
    """

    name: str
    tenant: str
    sha256: str
    deployments: tuple[str, ...] = ()

    @property
    def key_id(self) -> str:
        """The id that ledger rows carry; stable as long as the name is."""
        return f"config:{self.name}"


class Keyring:
    """All keys by the SHA-256 of their secret; comparing hashes by lookup leaks nothing of a secret.

    A known key keeps its identity everywhere and a revoked one is refused everywhere. Any other, or none, is `local`
    where the endpoint is bound to loopback and the configuration names no key.

    Args:
        store: keys made at run time, None without a store.
        configured: keys of the configuration.
        is_loopback: the endpoint is reachable from this machine only.
    """

    def __init__(self, store: KeyStore | None, configured: Iterable[ConfiguredKey] = (), *, is_loopback: bool) -> None:
        self._store = store
        self._is_loopback = is_loopback
        self._configured: tuple[ConfiguredKey, ...] = ()
        self._stored: dict[bytes, Principal] = {}
        self._revoked: frozenset[bytes] = frozenset()
        self._principals: dict[bytes, Principal] = {}
        self.configure(configured)

    @property
    def accepts_anyone(self) -> bool:
        """Whether an unknown key, or none, is accepted as `local`."""
        return self._is_loopback and not self._configured

    @property
    def has_keys(self) -> bool:
        """Whether any key is valid, configured or stored."""
        return bool(self._principals)

    def configure(self, configured: Iterable[ConfiguredKey]) -> None:
        """Replace the configured keys, after `stoker apply`."""
        self._configured = tuple(configured)
        self._rebuild()

    async def refresh(self) -> None:
        """Read the key store again; until it has answered the former keys stay valid."""
        if self._store is None:
            return
        keys = await self._store.list_keys()
        self._stored = {
            bytes.fromhex(key.sha256): Principal(key.key_id, key.tenant, frozenset(key.deployments))
            for key in keys
            if key.revoked_at_us is None
        }
        self._revoked = frozenset(bytes.fromhex(key.sha256) for key in keys if key.revoked_at_us is not None)
        self._rebuild()

    def identify(self, headers: Mapping[bytes, bytes]) -> Principal:
        """Return who sends a request with these (lower-case) headers: `authorization: Bearer …` or `x-api-key`.

        Raises:
            Unauthenticated: the key is unknown, revoked or missing where one is needed.
        """
        secret = _presented_secret(headers)
        if secret is not None:
            digest = sha256(secret[: _MAX_SECRET_BYTES + 1]).digest()
            principal = self._principals.get(digest)
            if principal is not None:
                return principal
            if digest in self._revoked:
                raise Unauthenticated("this API key was revoked", mend="ask for another: `stoker keys create`")
        if self.accepts_anyone:
            return LOCAL
        if secret is None:
            raise Unauthenticated("no API key was given", mend="send `Authorization: Bearer <key>`")
        raise Unauthenticated("this API key is not known here", mend="see `stoker keys list`")

    def _rebuild(self) -> None:
        principals = dict(self._stored)
        for key in self._configured:
            principals[bytes.fromhex(key.sha256)] = Principal(key.key_id, key.tenant, frozenset(key.deployments))
        self._principals = principals


def _presented_secret(headers: Mapping[bytes, bytes]) -> bytes | None:
    authorization = headers.get(b"authorization")
    if authorization is not None:
        if authorization.startswith(b"Bearer sk-"):
            return authorization[7:]
        scheme, _, secret = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and (secret := secret.strip()):
            return secret
    return headers.get(b"x-api-key") or None
