"""Who may use which deployment. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a client key stands for.

    Attributes:
        key_id: the ledger's id of the key; `local` for anybody on loopback without configured keys.
        deployments: allow-list; empty: all that the tenant may use.
    """

    key_id: str
    tenant: str
    deployments: frozenset[str] = frozenset()

    def may_use(self, deployment: str, tenants: tuple[str, ...]) -> bool:
        """Tell whether the key's allow-list and the deployment's `tenants` (empty: everybody) both permit it."""
        return (not self.deployments or deployment in self.deployments) and (not tenants or self.tenant in tenants)


LOCAL = Principal("local", "default")
